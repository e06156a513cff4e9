"""ESCI in its own layout, as Parquet and as CSV."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from finetune.data.clicklog import ClickLogError
from finetune.data.imports.esci import read_esci

EXAMPLES = {
    "example_id": [0, 1, 2, 3],
    "query": ["tea pot", "tea pot", "tea pot", "tetera"],
    "query_id": [7, 7, 7, 8],
    "product_id": ["B1", "B2", "B9", "B1"],
    "product_locale": ["us", "us", "us", "es"],
    "esci_label": ["E", "S", "E", "I"],
    "small_version": [1, 1, 1, 0],
    "large_version": [1, 1, 1, 1],
    "split": ["train", "train", "train", "test"],
}
PRODUCTS = {
    "product_id": ["B1", "B2", "B1"],
    "product_title": ["Ceramic tea pot", "Kettle, steel", None],
    "product_description": ["<p>A pot.</p>", None, None],
    "product_bullet_point": [None, None, None],
    "product_brand": ["Brixo", "Halden", None],
    "product_color": ["red", None, None],
    "product_locale": ["us", "us", "es"],
}


def write(folder: Path, suffix: str, examples: Mapping[str, Sequence[object]] = EXAMPLES) -> tuple[Path, Path]:
    paths = folder / f"examples{suffix}", folder / f"products{suffix}"
    for path, columns in zip(paths, (examples, PRODUCTS), strict=True):
        (parquet.write_table if suffix == ".parquet" else csv.write_csv)(pa.table(columns), path)
    return paths


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_each_example_of_a_known_product_becomes_a_row(tmp_path: Path, suffix: str) -> None:
    skipped: Counter[str] = Counter()
    rows = list(read_esci(*write(tmp_path, suffix), skipped=skipped))
    assert [(row.group, row.query, row.document, row.clicks) for row in rows] == [
        ("7", "tea pot", "Ceramic tea pot", 1.0),
        ("7", "tea pot", "Kettle, steel", 0.0),
        ("8", "tetera", "", 0.0),
    ]
    assert rows[1].others == {"product_locale": "us", "esci_label": "S", "split": "train"}
    assert skipped == {"examples, of unknown products": 1}


def test_other_labels_may_count_as_a_click(tmp_path: Path) -> None:
    rows = read_esci(*write(tmp_path, ".parquet"), clicks=("E", "S"))
    assert [row.clicks for row in rows] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(("suffix", "place"), [(".parquet", "row 3"), (".csv", "line 4")])
def test_refuses_a_label_out_of_range(tmp_path: Path, suffix: str, place: str) -> None:
    examples = {**EXAMPLES, "esci_label": ["E", "S", "X", "I"]}
    with pytest.raises(ClickLogError, match=f"examples{suffix}, {place}: 'esci_label' is 'X'; it must be one of E, S"):
        list(read_esci(*write(tmp_path, suffix, examples)))


def test_refuses_a_table_without_a_column(tmp_path: Path) -> None:
    examples = {name: column for name, column in EXAMPLES.items() if name != "query_id"}
    with pytest.raises(ClickLogError, match="has no column 'query_id'; name the right one of example_id, query"):
        list(read_esci(*write(tmp_path, ".parquet", examples)))
