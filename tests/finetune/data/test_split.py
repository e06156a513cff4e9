"""Splits of a click log: nothing leaks and nothing is lost, whatever the log."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.data.split import SPLITS, WAYS, split_log

Line = dict[str, object]


def write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made_up(users: int, visits: int = 2, candidates: int = 3) -> list[Line]:
    return [
        {"group": f"g{user}-{visit}", "query": "q", "document": f"d{place}", "click": place % 2,
         "user": f"u{user}", "time": 1000 * visit + user, "kept": [place]}
        for user in range(users) for visit in range(visits) for place in range(candidates)
    ]  # fmt: skip


def read(folder: Path) -> dict[str, list[ClickRow]]:
    return {name: read_click_log(folder / f"{name}.jsonl") for name in SPLITS if (folder / f"{name}.jsonl").exists()}


@st.composite
def logs(draw: st.DrawFn) -> list[Line]:
    """Draw impressions of a few users at a few moments: ties, long groups and groups far apart in the file."""
    lines: list[Line] = []
    for group in range(draw(st.integers(1, 25))):
        user = draw(st.integers(0, 8))
        start = draw(st.integers(0, 30))
        for place in range(draw(st.integers(1, 3))):
            time = start + draw(st.integers(0, 2))
            lines.append(
                {
                    "group": f"g{group}",
                    "query": "q",
                    "document": f"d{place}",
                    "click": 1,
                    "user": f"u{user}",
                    "time": time,
                }
            )
    return draw(st.permutations(lines))


@settings(max_examples=200)
@given(
    logs(), st.sampled_from(WAYS), st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.sampled_from([0.1, 0.4]), st.integers(0, 3)
)
def test_nothing_leaks_and_nothing_is_lost(log: list[Line], by: str, dev: float, test: float, seed: int) -> None:
    with TemporaryDirectory() as name:
        path, folder = write(Path(name) / "log.jsonl", log), Path(name) / "out"
        try:
            summaries = split_log(path, folder, by, dev, test, seed)
        except ClickLogError as error:
            assert any(reason in str(error) for reason in ("would get no row", "cannot be cut"))
            assert not list(folder.glob("*")), "an error leaves no file"
            assume(False)
        splits = read(folder)
        assert set(splits) == set(summaries) == {"train", "test"} | ({"dev"} if dev else set())
        wrote = [line for split in splits for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert sorted(wrote) == sorted(path.read_text().splitlines())
    owners: dict[object, set[str]] = defaultdict(set)
    for split, rows in splits.items():
        for row in rows:
            owners["group", row.group].add(split)
            if by == "user":
                owners["user", row.user].add(split)
        found = summaries[split]
        assert found.rows == len(rows)
        assert found.groups == len({row.group for row in rows})
        assert found.users == len({row.user for row in rows})
        times = [row.time for row in rows if row.time is not None]
        assert (found.start, found.end) == (min(times), max(times))
    assert all(len(where) == 1 for where in owners.values())
    if by == "time":
        spans = [(summaries[split].start, summaries[split].end) for split in SPLITS if split in summaries]
        for (_, end), (start, _) in pairwise(spans):
            assert end is not None
            assert start is not None
            assert end < start


@pytest.mark.parametrize("by", WAYS)
def test_keeps_the_shares_and_the_order(tmp_path: Path, by: str) -> None:
    path = write(tmp_path / "log.jsonl", made_up(users=1000))
    summaries = split_log(path, tmp_path / "out", by, dev=0.1, test=0.2)
    rows = [summaries[name].rows / 6000 for name in SPLITS]
    assert rows == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    for rows_of_one in read(tmp_path / "out").values():
        order = [int(row.group.partition("-")[0][1:]) for row in rows_of_one]
        assert order == sorted(order)


def test_more_users_leave_the_others_where_they_were(tmp_path: Path) -> None:
    homes = []
    for users in (50, 80):
        path = write(tmp_path / "log.jsonl", made_up(users))
        split_log(path, tmp_path / str(users), "user", 0.2, 0.2)
        homes.append({row.user: name for name, rows in read(tmp_path / str(users)).items() for row in rows})
    assert homes[0].items() <= homes[1].items()


def test_another_seed_splits_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", made_up(100))
    for seed in (0, 1):
        split_log(path, tmp_path / str(seed), "user", 0.2, 0.2, seed)
    assert read(tmp_path / "0") != read(tmp_path / "1")


def test_by_time_gives_no_one_moment_to_two_splits(tmp_path: Path) -> None:
    lines = [{**line, "time": 7} for line in made_up(10)]
    with pytest.raises(ClickLogError, match="cannot be cut in 3 by time; split by group"):
        split_log(write(tmp_path / "log.jsonl", lines), tmp_path / "out", "time", 0.1, 0.1)
    assert not list((tmp_path / "out").glob("*"))


def test_by_time_cuts_where_no_group_is_going_on(tmp_path: Path) -> None:
    times = {"a": (1, 2), "b": (2, 6), "c": (4, 5), "d": (7, 7), "e": (8, 9)}
    lines: list[Line] = [
        {"group": group, "query": "q", "document": str(time), "click": 0, "time": time}
        for group, both in times.items() for time in both
    ]  # fmt: skip
    split_log(write(tmp_path / "log.jsonl", lines), tmp_path / "out", "time", 0.3, 0.3)
    found = {name: sorted({row.group for row in rows}) for name, rows in read(tmp_path / "out").items()}
    assert found == {"train": ["a", "b", "c"], "dev": ["d"], "test": ["e"]}


@pytest.mark.parametrize("key", ["user", "time"])
def test_refuses_a_row_without_what_it_splits_by(tmp_path: Path, key: str) -> None:
    lines = made_up(3)
    del lines[4][key]
    with pytest.raises(ClickLogError, match=f"line 5: has no '{key}'"):
        split_log(write(tmp_path / "log.jsonl", lines), tmp_path / "out", key, 0.1, 0.1)
    assert not list((tmp_path / "out").glob("*"))


def test_refuses_to_tear_a_group_of_two_users(tmp_path: Path) -> None:
    lines = [{**line, "group": "g"} for line in made_up(20)]
    with pytest.raises(ClickLogError, match="group 'g' has rows of two users"):
        split_log(write(tmp_path / "log.jsonl", lines), tmp_path / "out", "user", 0.3, 0.3)


def test_a_broken_line_in_the_middle_keeps_older_files(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", made_up(30))
    split_log(path, tmp_path / "out", "user", 0.3, 0.3)
    before = read(tmp_path / "out")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:90], "{broken", *lines[90:]]))
    with pytest.raises(ClickLogError, match="line 91: not JSON"):
        split_log(path, tmp_path / "out", "user", 0.2, 0.2)
    assert read(tmp_path / "out") == before


def test_refuses_to_replace_its_own_log_or_to_leave_an_older_split(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", made_up(30))
    with pytest.raises(ClickLogError, match="is the log that is to be split"):
        split_log(path, tmp_path, "user", 0.2, 0.2)
    write(tmp_path / "out.jsonl", made_up(30)).rename(tmp_path / "log.jsonl")
    path.rename(tmp_path / "test.jsonl")
    with pytest.raises(ClickLogError, match=r"test\.jsonl: would stay beside the new files"):
        split_log(tmp_path / "log.jsonl", tmp_path, "user", 0.2, 0.0)


@pytest.mark.parametrize("name", ["train", "test"])
def test_refuses_to_leave_an_older_split_that_is_gzipped(tmp_path: Path, name: str) -> None:
    """It would be found where there is no other one of its name, with users that are in train now."""
    (tmp_path / f"{name}.jsonl.gz").write_bytes(b"older")
    with pytest.raises(ClickLogError, match=rf"{name}\.jsonl\.gz: would stay beside the new files"):
        split_log(write(tmp_path / "log.jsonl", made_up(30)), tmp_path, "user", 0.2, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", f"{name}.jsonl.gz"}


@pytest.mark.parametrize(("dev", "test"), [(-0.1, 0.3), (0.0, 0.0), (0.5, 0.5), (float("nan"), 0.1)])
def test_refuses_shares_that_leave_nothing(tmp_path: Path, dev: float, test: float) -> None:
    with pytest.raises(ClickLogError, match="give shares"):
        split_log(write(tmp_path / "log.jsonl", made_up(3)), tmp_path / "out", "user", dev, test)
