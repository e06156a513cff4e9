"""Cuts a click log into train, dev and test, so that nothing of dev and test is known from train.

By user and by group, a hash of the user or the group decides. So the shares are kept on average, more data leave every
user where it was, and another seed cuts otherwise. By time, everything of train is earlier than everything of dev, and
dev earlier than test. A group is never torn: its candidates compete with each other.

The log is read line by line and may be larger than memory. Only a few numbers are kept for each group and each user.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.clicklog import iterate_click_log, iterate_with_lines
from finetune.data.hashing import hash_text
from finetune.data.row import ClickLogError, ClickRow
from finetune.data.writing import whole_files

SPLITS = ("train", "dev", "test")
WAYS = ("user", "group", "time")
Watch = Callable[[int], None] | None


@dataclass(slots=True)
class SplitSummary:
    """What one split got. `users` is 0 where the log names none, and the times are None where it has none."""

    rows: int = 0
    groups: int = 0
    users: int = 0
    start: float | None = None  # of the first impression, in seconds since 1970
    end: float | None = None  # of the last


def split_log(
    path: Path, folder: Path, by: str, dev: float, test: float, seed: int = 0, watch: Watch = None
) -> dict[str, SplitSummary]:
    """Write `folder`/{train,dev,test}.jsonl, the lines as they stand in `path`: all three, or none.

    `dev` and `test` are shares of the users, of the groups or (by time) of the rows; a share of 0 leaves that file out.
    `watch` is told how many bytes were read; by time, the log is read twice.

    Raises:
        ClickLogError: the log is broken, lacks users or times where it is split by them, or cannot be cut so; or a file
            in the folder stands in the way.
        OSError: a file cannot be written.
    """
    shares = _shares(dev, test)
    _check_folder(path, folder, list(shares))
    choose = _by_time(path, shares, watch) if by == "time" else _byhash_text(path, by, shares, seed)
    summaries = {name: SplitSummary() for name in shares}
    users: dict[str, set[int]] = {name: set() for name in shares}
    homes: dict[int, str] = {}  # of the groups
    with whole_files([folder / f"{name}.jsonl" for name in shares]) as opened:
        files = dict(zip(shares, opened, strict=True))
        for row, line in iterate_with_lines(path, watch):
            name = choose(row)
            if homes.setdefault(hash_text(row.group), name) != name:
                raise ClickLogError(
                    f"{path}, line {row.line}: group {row.group!r} has rows of two users, who are in two splits; "
                    "name groups so that each is what one user saw together, or split by group"
                )
            files[name].write(line + "\n")
            _add(summaries[name], row)
            if row.user is not None:
                users[name].add(hash_text(row.user))
        for name, summary in summaries.items():
            if not summary.rows:
                raise ClickLogError(f"{path}: {name} would get no row; give it a larger share, or take another --seed")
            summary.users = len(users[name])
        for name, groups in Counter(homes.values()).items():
            summaries[name].groups = groups
    return summaries


def _shares(dev: float, test: float) -> dict[str, float]:
    if not (dev >= 0 and test >= 0 and 0 < dev + test < 1):
        raise ClickLogError(f"--dev is {dev:g} and --test {test:g}; give shares from 0 that leave some for train")
    return {name: share for name, share in zip(SPLITS, (1 - dev - test, dev, test), strict=True) if share}


def _check_folder(path: Path, folder: Path, names: Sequence[str]) -> None:
    written = {folder / f"{name}.jsonl" for name in names}
    for file in (folder / f"{name}.{end}" for name in SPLITS for end in ("jsonl", "jsonl.gz")):
        if not file.exists():
            continue
        if path.exists() and file.samefile(path):
            raise ClickLogError(f"{file}: is the log that is to be split; give another folder as --output")
        if file not in written:
            raise ClickLogError(
                f"{file}: would stay beside the new files, and may share users with them; "
                "remove it, or give another folder as --output"
            )


def _byhash_text(path: Path, by: str, shares: dict[str, float], seed: int) -> Callable[[ClickRow], str]:
    def choose(row: ClickRow) -> str:
        key = row.user if by == "user" else row.group
        if key is None:
            raise ClickLogError(f"{path}, line {row.line}: has no 'user'; add it to each row, or split by group")
        place = hash_text(f"{seed} {key}") / 2**64
        for name, share in shares.items():
            place -= share
            if place < 0:
                return name
        return "train"  # (the shares' sum is a rounding error less than 1)

    return choose


def _by_time(path: Path, shares: dict[str, float], watch: Watch) -> Callable[[ClickRow], str]:
    """Read the log once, and choose the cuts: the last moment of each split but the last."""
    groups: dict[int, list[float]] = {}  # start, end, rows
    for row in iterate_click_log(path, watch):
        if row.time is None:
            raise ClickLogError(f"{path}, line {row.line}: has no 'time'; add it to each row, or split by group")
        group = groups.setdefault(hash_text(row.group), [row.time, row.time, 0])
        group[0], group[1], group[2] = min(group[0], row.time), max(group[1], row.time), group[2] + 1
    ends = _cuts(sorted(groups.values()), list(shares.values()))
    if len(ends) < len(shares) - 1:
        raise ClickLogError(
            f"{path}: no moment lies between two groups, so it cannot be cut in {len(shares)} by time; "
            "split by group, or name groups so that each is one impression"
        )

    def choose(row: ClickRow) -> str:
        assert row.time is not None  # the first reading has seen to it
        return list(shares)[sum(row.time > end for end in ends)]

    return choose


def _cuts(groups: Sequence[Sequence[float]], shares: Sequence[float]) -> list[float]:
    """Find where the splits but the last end, as close to the shares of the rows as may be.

    `groups` are [start, end, rows], by their start. A cut is possible where all groups before have ended and the next
    has not begun. There may be fewer such places than cuts; then there are fewer cuts.
    """
    possible: list[tuple[float, float]] = []  # the last moment before the cut, and the rows until then
    latest, rows = float("-inf"), 0.0
    for start, end, size in groups:
        if rows and start > latest:
            possible.append((latest, rows))
        latest, rows = max(latest, end), rows + size
    found: list[float] = []
    wanted = 0.0
    for number, share in enumerate(shares[:-1], start=1):
        wanted += share * rows
        later = len(shares) - 1 - number  # cuts that must still find a place
        open_places = possible[: len(possible) - later]
        if not open_places:
            break
        moment, _ = min(open_places, key=lambda place: abs(place[1] - wanted))
        found.append(moment)
        possible = [place for place in possible if place[0] > moment]
    return found


def _add(summary: SplitSummary, row: ClickRow) -> None:
    summary.rows += 1
    if row.time is not None:
        summary.start = row.time if summary.start is None else min(summary.start, row.time)
        summary.end = row.time if summary.end is None else max(summary.end, row.time)
