"""Amazon's shopping queries, ESCI, read as the click log: https://github.com/amazon-science/esci-data

The examples (query, query_id, product_id, product_locale, esci_label) and the products (product_id, product_locale,
product_title), as Parquet or CSV. Each example becomes a row:

    group       query_id
    query       the query
    document    the product's title
    click       whether the label is one of `clicks`: E, exact, unless others are named. People judged these pairs, and
                nobody clicked: S is a substitute, C a complement, I irrelevant
    others      product_locale, esci_label, and split if there is one

Examples of a product that the products lack are left out, and counted. The products' titles are held in memory, the
examples are not.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from finetune.data.imports.tables import Watch, read_table
from finetune.data.row import ClickLogError, ClickRow, parse_row

LABELS = ("E", "S", "C", "I")
LONG_LABELS = {"exact": "E", "substitute": "S", "complement": "C", "irrelevant": "I"}  # of the first release
KEPT = ("product_locale", "esci_label", "split")


def read_esci(
    examples: Path,
    products: Path,
    clicks: Collection[str] = ("E",),
    skipped: Counter[str] | None = None,
    watch: Watch = None,
) -> Iterator[ClickRow]:
    """Read ESCI's rows. `skipped` counts, in words, what was left out; `watch` is that of the table's reader.

    Raises:
        ClickLogError: a table cannot be read, lacks a column, or has a label that is none of ESCI's.
    """
    skipped = Counter() if skipped is None else skipped
    titles: dict[tuple[object, object], object] = {}
    for record in read_table(products, ("product_id", "product_locale", "product_title")):
        product = record.values
        titles[product["product_locale"], product["product_id"]] = product["product_title"]
    columns = ("query", "query_id", "product_id", "product_locale", "esci_label")
    for record in read_table(examples, columns, ("split",), watch):
        example = record.values
        label = LONG_LABELS.get(str(example["esci_label"]), example["esci_label"])
        if label not in LABELS:
            raise ClickLogError(f"{record.where}: 'esci_label' is {label!r}; it must be one of {', '.join(LABELS)}")
        key = example["product_locale"], example["product_id"]
        if key not in titles:
            skipped["examples, of unknown products"] += 1
            continue
        row = {
            "group": str(example["query_id"]),
            "query": example["query"],
            "document": titles[key] or "",  # some products have no title
            "click": int(label in clicks),
            **{name: example[name] for name in KEPT if name in example},
        }
        yield parse_row(row, record.where, record.number)
