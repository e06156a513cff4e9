"""The folders of the benchmarks import each other in one direction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import benchmarks

ALLOWED = {
    "measure": set(),
    "report": {"measure"},
    "load_gen": {"measure"},
    "saturation": {"measure", "load_gen"},
    "scheduling": {"measure", "load_gen", "saturation", "report"},
    "soak": {"measure", "load_gen", "report"},
}


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_the_folders_below_it(folder: str) -> None:
    files = list((Path(benchmarks.__file__).parent / folder).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    imported = set(re.findall(r"^from benchmarks(?:\.| import )(\w+)", text, re.MULTILINE))
    assert imported - {folder, "BenchmarkError", "say"} <= ALLOWED[folder]
