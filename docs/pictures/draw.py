"""Draws the README's pictures, for light and for dark pages: a request three times, and the throughput.

    python docs/pictures/draw.py            writes *.svg beside this file
    python docs/pictures/draw.py FOLDER     writes them there

Needs the standard library only. After a new measurement, change baselines.json and run it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
WIDTH = 880

# One request of the sample log: group news-u0163-0 of data/sample/test.jsonl. 60 % of its padded grid is padding, as
# in the whole test split. How to count, after `make demo`:
#
#   from finetune.checkpoint.load import load_checkpoint
#   from finetune.data.clicklog import read_click_log
#   from finetune.evaluation.scoring import tokenize_pairs
#   model, tokenizer, max_length = load_checkpoint("checkpoints/demo")
#   rows = [row for row in read_click_log("data/sample/test.jsonl") if row.group == "news-u0163-0"]
#   print([len(pair["input_ids"]) for pair in tokenize_pairs(tokenizer, rows, max_length)])
USER_TOKENS = 9  # [CLS], "Stories about astronauts. I have been", [SEP]
ONCE = "The user text once"
PAIR_TOKENS = (31, 22, 20, 33, 17, 20, 18, 21, 74, 55, 31, 21, 29, 21, 32)

# The chart's bars, in order: the name in baselines.json, and what the chart calls it.
BARS = {
    "fp32": {
        "pytorch": "PyTorch, padded to the longest",
        "infinity": "infinity",
        "triton_cpp": "Triton's C++ backend *",
        "clickbert_onnx": "this project",
    },
    "INT8": {"triton_cpp_int8": "Triton's C++ backend *", "clickbert_onnx_int8": "this project"},
}
WORKLOADS = {"mixed lengths": "Mixed lengths", "titles": "Titles"}
NOTES = (
    "Bars are the median of three rounds, thin lines the slowest and the fastest. Servers answer 8 callers.",
    "* Measured in another run on this machine, as a share of this project's figure.",
)


class Palette(NamedTuple):
    """The colours of one theme."""

    page: str
    text: str
    muted: str
    line: str
    strong: str  # the user text; this project
    soft: str  # the candidates
    padding: str
    other: str  # everybody else


PALETTES = {
    "light": Palette("#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#80bbff", "#e6eaef", "#8c959f"),
    "dark": Palette("#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#4493f8", "#1f4b85", "#21262d", "#6e7681"),
}


class Drawing:
    """An SVG file under construction. All lengths are pixels."""

    def __init__(self, palette: Palette, height: float, title: str) -> None:
        self.palette = palette
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" font-family="sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="{palette.page}"/>',
        ]

    def rect(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> None:
        """A filled rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str) -> None:
        """A thin line."""
        self.parts.append(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{stroke}"/>')

    def text(self, x: float, y: float, text: str, *, size: float = 13, fill: str = "", more: str = "") -> None:
        """A line of text. y is its baseline, `more` are further attributes."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill or self.palette.text}"{more}>'
            f"{escape(text)}</text>"
        )

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


BOLD, AT_END = ' font-weight="600"', ' text-anchor="end"'


def draw_packing(palette: Palette) -> str:
    """One request as a padded grid, the same tokens packed end to end, and those of a model that reads users once."""
    longest, pairs = max(PAIR_TOKENS), len(PAIR_TOKENS)
    packed = [part for tokens in PAIR_TOKENS for part in ((USER_TOKENS, True), (tokens - USER_TOKENS, False))]
    # [CLS] belongs to the candidate then.
    once = [(USER_TOKENS - 1, True), *((tokens - USER_TOKENS + 1, False) for tokens in PAIR_TOKENS)]
    rows = [(name, parts, sum(tokens for tokens, _ in parts)) for name, parts in (("Packed", packed), (ONCE, once))]
    token, row, thickness, top, heading = 5.3, 13, 10, 66, 66
    left, right = 20, 20 + longest * token + 46
    heights = [heading + -(-total // longest) * row for _, _, total in rows]
    height = max(top + pairs * row, sum(heights))
    drawing = Drawing(
        palette,
        height + 50,
        f"The same request: padded, its {pairs} pairs take {longest * pairs} positions; "
        + "; ".join(f"{name.lower()}, {total} tokens" for name, _, total in rows),
    )
    drawing.text(left, 30, "Padded to the longest pair", size=16, more=BOLD)
    drawing.text(
        left, 51, f"{pairs} pairs \N{MULTIPLICATION SIGN} {longest} = {longest * pairs:,} positions", fill=palette.muted
    )
    for place, tokens in enumerate(PAIR_TOKENS):
        y = top + place * row
        drawing.rect(left, y, longest * token, thickness, palette.padding)
        drawing.rect(left, y, tokens * token, thickness, palette.soft)
        drawing.rect(left, y, USER_TOKENS * token, thickness, palette.strong)
    y = 0
    for (name, parts, total), own in zip(rows, heights, strict=True):
        drawing.text(right, y + 30, name, size=16, more=BOLD)
        drawing.text(right, y + 51, f"{total} tokens end to end: one row, wrapped here", fill=palette.muted)
        for start, tokens, is_user in pieces(parts, longest):
            place, offset = divmod(start, longest)
            colour = palette.strong if is_user else palette.soft
            drawing.rect(right + offset * token, y + top + place * row, tokens * token, thickness, colour)
        y += own
    for place, (label, colour) in enumerate(
        (("user text", palette.strong), ("candidate", palette.soft), ("padding", palette.padding))
    ):
        drawing.rect(left + place * 110, height + 20, 11, 11, colour)
        drawing.text(left + place * 110 + 18, height + 30, label)
    return str(drawing)


def pieces(parts: Sequence[tuple[int, bool]], width: int) -> Iterator[tuple[int, int, bool]]:
    """A row of texts cut at multiples of `width`: where a piece starts, its tokens, whether it is user text."""
    start = 0
    for length, is_user in parts:
        end = start + length
        while start < end:
            stop = min(end, (start // width + 1) * width)
            yield start, stop - start, is_user
            start = stop


def draw_throughput(palette: Palette, measured: dict[str, Any]) -> str:
    """Pairs per second of everybody who ranks with the same checkpoint, one panel a workload."""
    figures = read_figures(measured)
    labels, panel, between, top, row, group = 250, 262, 46, 88, 25, 30
    limit = 100 * -(-max(figure["fastest"] for figure in figures.values()) // 100)
    bottom = max(y for _, y in bar_places(top, row, group)) + row
    drawing = Drawing(
        palette,
        bottom + 66,
        "Pairs per second: "
        + "; ".join(
            f"{workload}: "
            + ", ".join(
                f"{label.removesuffix(' *')} {precision} {figures[name, workload]['pairs_per_second']:.0f}"
                for precision, bars in BARS.items()
                for name, label in bars.items()
            )
            for workload in WORKLOADS
        ),
    )
    drawing.text(20, 30, "Pairs ranked per second, 20 candidates a request", size=16, more=BOLD)
    drawing.text(20, 51, f"MiniLM-L6 on {measured['machine']}, {measured['date']}", fill=palette.muted)
    for place, (workload, heading) in enumerate(WORKLOADS.items()):
        x = labels + place * (panel + between)
        drawing.text(x, top - 10, heading, more=BOLD)
        for tick in range(0, int(limit) + 1, 200):
            drawing.line(x + tick / limit * panel, top, x + tick / limit * panel, bottom, palette.line)
            drawing.text(x + tick / limit * panel, bottom + 16, str(tick), size=11, fill=palette.muted,
                         more=' text-anchor="middle"')  # fmt: skip
        for name, y in bar_places(top, row, group):
            draw_bar(drawing, x, y, panel / limit, name, figures[name, workload])
    for precision, bars in BARS.items():
        places = dict(bar_places(top, row, group))
        drawing.text(labels - 12, places[next(iter(bars))] - 10, precision, fill=palette.muted, more=AT_END + BOLD)
        for name, label in bars.items():
            weight = BOLD if name.startswith("clickbert") else ""
            drawing.text(labels - 12, places[name] + 17, label, more=AT_END + weight)
    for place, note in enumerate(NOTES):
        drawing.text(20, bottom + 40 + 17 * place, note, size=12, fill=palette.muted)
    return str(drawing)


def bar_places(top: float, row: float, group: float) -> Iterator[tuple[str, float]]:
    """Each bar's name and its y; `group` is left free for the heading of the next precision."""
    y = top
    for bars in BARS.values():
        for name in bars:
            yield name, y
            y += row
        y += group


def draw_bar(drawing: Drawing, x: float, y: float, scale: float, name: str, figure: dict[str, Any]) -> None:
    """One bar with its range and its figure."""
    palette = drawing.palette
    end, last = x + figure["pairs_per_second"] * scale, x + figure["pairs_per_second"] * scale
    if name.startswith("triton_cpp"):
        drawing.rect(x, y + 5, end - x, 16, palette.padding, stroke=palette.other)
    else:
        drawing.rect(x, y + 5, end - x, 16, palette.strong if name.startswith("clickbert") else palette.other)
    if "slowest" in figure:
        last = max(last, x + figure["fastest"] * scale)
        drawing.line(x + figure["slowest"] * scale, y + 13, last, y + 13, palette.text)
    about = "≈ " if name.startswith("triton_cpp") else ""
    halo = f' stroke="{palette.page}" stroke-width="4" paint-order="stroke"'  # keeps grid lines off the figure
    drawing.text(last + 7, y + 17, f"{about}{figure['pairs_per_second']:.0f}", more=halo)


def read_figures(measured: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The figures by name and workload, with the C++ backend's, which were measured as shares of this project's."""
    figures = {(figure["name"], figure["workload"]): figure for figure in measured["figures"]}
    for share in measured["triton_cpp_share"]:
        name, workload = share["name"], share["workload"]
        figures[name.replace("clickbert_onnx", "triton_cpp"), workload] = {
            "pairs_per_second": share["share"] * figures[name, workload]["pairs_per_second"],
            "fastest": 0,
        }
    return figures


def main(arguments: Sequence[str]) -> None:
    """Writes both pictures for both themes."""
    folder = Path(arguments[0]) if arguments else HERE
    measured = json.loads((HERE / "baselines.json").read_text(encoding="utf-8"))
    for theme, palette in PALETTES.items():
        (folder / f"packing-{theme}.svg").write_text(draw_packing(palette), encoding="utf-8")
        (folder / f"throughput-{theme}.svg").write_text(draw_throughput(palette, measured), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
