"""The commands on click logs, as a user runs them."""

import json
import resource
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune.__main__ import main
from finetune.data.clicklog import read_click_log

CSV = "id,query,document,click,position,price,who\n1,tea,cup,1,1,2.5,x\n1,tea,pot,0,2,,y\n"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_imports_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    output = tmp_path / "new" / "log.jsonl.gz"
    options = ("--group-column", "id", "--feature-columns", "price", "--other-columns", "who")
    assert run("import", "csv", tmp_path / "log.csv", "--output", output, *options) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output}: 2 rows\n"
    assert "log.csv" in captured.err, "the progress bar"
    rows = read_click_log(output)
    assert [(row.group, row.position, dict(row.features), row.others["who"]) for row in rows] == [
        ("1", 1, {"price": 2.5}, "x"),
        ("1", 2, {}, "y"),
    ]


def test_imports_csv_with_another_delimiter(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(CSV.replace(",", "\t"))
    arguments = ("import", "csv", tmp_path / "log.csv", "--output", tmp_path / "log.jsonl", "--group-column", "id")
    assert run(*arguments) == 1, "it has no commas"
    assert run(*arguments, "--delimiter", "tab") == 0


def test_imports_parquet(tmp_path: Path) -> None:
    table = {"group": ["1"], "query": ["tea"], "document": ["cup"], "click": [True], "topic": [["shop"]]}
    parquet.write_table(pa.table(table), tmp_path / "log.parquet")
    assert run("import", "parquet", tmp_path / "log.parquet", "--output", tmp_path / "log.jsonl") == 0
    line = {"group": "1", "query": "tea", "document": "cup", "click": 1, "topic": "shop"}
    assert json.loads((tmp_path / "log.jsonl").read_text()) == line


def test_imports_mind_and_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "news.tsv").write_text("N1\ta\tb\tRain\t\t\t[]\t[]\nN2\ta\tb\tSoup\tLeeks.\t\t[]\t[]\n")
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/15/2019 8:55:22 AM\t\tN1-1 N2-0 N3-0\n")
    output = tmp_path / "log.jsonl"
    assert run("import", "mind", tmp_path, "--output", output, "--abstracts") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 2 rows",
        "1 impressions without history (kept, with an empty query)",
        "1 shown candidates, of unknown news, left out",
    ]
    assert [row.document for row in read_click_log(output)] == ["Rain", "Soup Leeks."]


def test_imports_esci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = "query,query_id,product_id,product_locale,esci_label\ntea,7,B1,us,S\ntea,7,B2,us,E\n"
    (tmp_path / "examples.csv").write_text(examples)
    (tmp_path / "products.csv").write_text("product_id,product_locale,product_title\nB1,us,Cup\n")
    paths = (tmp_path / "examples.csv", tmp_path / "products.csv")
    assert run("import", "esci", *paths, "--output", tmp_path / "log.jsonl", "--click-labels", "E", "S") == 0
    assert "1 examples, of unknown products, left out" in capsys.readouterr().out
    assert [row.clicks for row in read_click_log(tmp_path / "log.jsonl")] == [1.0]


def test_a_failed_import_leaves_the_older_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "log.jsonl"
    output.write_text("older")
    (tmp_path / "log.csv").write_text("group,query,document,click\n" + "1,tea,cup,1\n" * 50 + "1,tea,cup,2\n")
    assert run("import", "csv", tmp_path / "log.csv", "--output", output) == 1
    assert "log.csv, line 52: 'click' is '2'; it must be 0 or 1" in capsys.readouterr().err
    assert run("import", "csv", tmp_path / "none.csv", "--output", output) == 1
    (tmp_path / "log.csv").write_text("group,query,document,click\n" + "1,tea,cup,1\n" * 5000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # a write beyond fails as on a full disk
    try:
        assert run("import", "csv", tmp_path / "log.csv", "--output", output) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert output.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "log.jsonl"]


def test_an_import_without_rows_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("group,query,document,click\n")
    assert run("import", "csv", tmp_path / "log.csv", "--output", tmp_path / "log.jsonl") == 1
    assert "there is no row to write" in capsys.readouterr().err
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("wrong", [("--output", "log.txt"), ("--output", "log.jsonl", "--delimiter", "ab")])
def test_refuses_wrong_usage(wrong: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("import", "csv", "log.csv", *wrong)
    assert caught.value.code == 2


def test_splits_the_sample_and_describes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "--output", tmp_path) == 0
    capsys.readouterr()
    cut = tmp_path / "cut"
    assert run("split", tmp_path / "train.jsonl", "--by", "time", "--output", cut, "--test", "0.2") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        str(cut / f"{name}.jsonl") for name in ("train", "dev", "test")
    ]
    rows = read_click_log(cut / "dev.jsonl")
    groups, users = {row.group for row in rows}, {row.user for row in rows}
    assert f"dev.jsonl: {len(rows)} rows, {len(groups)} groups, {len(users)} users, 2026-01-" in said[1]
    assert run("describe", cut / "dev.jsonl", "--page", tmp_path / "page.html") == 0
    shown = capsys.readouterr().out
    assert "Click rate by position\n" in shown
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg ") == 6


def test_a_page_that_cannot_be_written_is_refused_before_the_log_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("describe", tmp_path / "no-such-log.jsonl", "--page", tmp_path) == 1
    assert f"is a folder; name a file: '{tmp_path}'" in capsys.readouterr().err


def test_describe_and_split_name_the_broken_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"group": "g", "query": "q", "document": "d", "click": 1, "user": "u"})
    (tmp_path / "log.jsonl").write_text(f"{line}\n{line}\nbroken\n{line}\n")
    assert run("describe", tmp_path / "log.jsonl", "--page", tmp_path / "page.html") == 1
    assert run("split", tmp_path / "log.jsonl", "--by", "user", "--output", tmp_path / "cut") == 1
    assert capsys.readouterr().err.count("log.jsonl, line 3: not JSON") == 2
    assert [path.name for path in tmp_path.rglob("*.*")] == ["log.jsonl"]
