"""The pages say what is there: their links, paths, commands, pictures, and who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Not the changelog: what it names may be gone.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "client" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("deploy/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
ROOMS = ("release", "finetune", "export", "serving", "clickbert", "benchmarks", "deploy")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_relative_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


@each_page
def test_modules_that_a_command_runs_exist(page: Path) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", page.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module), f"{page.name}: python -m {module}"


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    code += re.findall(r"^(?: {4}|\$ )(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for target in [match[1] for line in code if (match := re.match(r"make ([a-z-]+)", line))]:
        assert target in targets, f"{page.name}: make {target}"


@each_page
def test_files_named_in_a_page_exist(page: Path) -> None:
    top = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = re.findall(rf"`((?:{top})/[\w./-]+\.(?:py|md|pbtxt|json))`", page.read_text(encoding="utf-8"))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_the_tree_names_what_exists() -> None:
    paths = tree_paths()
    assert len(paths) > 40
    missing = [str(path) for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_paths_beside_the_diagrams_exist() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8").replace(tree(), "")
    found = re.findall(r"(?<![\w/])((?:client|export|finetune|model_repository|serving)/[\w./*-]+)", text)
    assert len(found) > 10
    missing = [path for path in found if not path.endswith("/N") and not list(ROOT.glob(path.rstrip("./")))]
    assert not missing


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    (allowed,) = re.findall(rf"^\| `{room}` \| (.+) \|$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    may = {room, *re.findall(r"`(\w+)`", allowed)}
    for file in (ROOT / ("client/clickbert" if room == "clickbert" else room)).rglob("*.py"):
        for name in imported(file):
            top = name.partition(".")[0]
            assert top not in ROOMS or top in may, f"{file.relative_to(ROOT)} imports {name}"


def test_the_rooms_of_export_import_only_those_before_them() -> None:
    rooms = ("graph", "quantize", "tensorrt", "verify", "builder", "engines", "report")
    for file in (ROOT / "export").rglob("*.py"):
        room = file.relative_to(ROOT / "export").parts[0].removesuffix(".py")
        may = (
            rooms[: rooms.index(room) + 1]
            if room in rooms
            else (*rooms, "configs", "publish", "pipeline", "plan", "cli")
        )
        for name in imported(file):
            assert not name.startswith("export.") or name.split(".")[1] in may, f"{file.relative_to(ROOT)}: {name}"


def test_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    pictures = ROOT / "docs" / "pictures"
    subprocess.run([sys.executable, pictures / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in pictures.glob("*.svg")}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree() -> str:
    """The annotated tree in docs/architecture.md."""
    (found,) = re.findall(r"```\n(finetune/.+?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def tree_paths() -> list[Path]:
    """Every path of the tree, by its indentation."""
    folders: list[str] = []
    paths = []
    for line in tree().splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        folders[depth:] = [line.split()[0]]
        paths.append(Path(*folders))
    return paths


def imported(file: Path) -> set[str]:
    """The modules that a module imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found
