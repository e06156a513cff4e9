"""`python -m export` as the tests call it, and limits for random models, which rank nothing."""

from pathlib import Path

from export.__main__ import main

WIDE = (
    "--int8-auc",
    "1",
    "--int8-log-loss",
    "1",
    "--int8-ndcg",
    "1",
    "--int8-top1",
    "1",
    "--fp16-auc",
    "1",
    "--int8-topic",
    "1",
    "--int8-cosine",
    "1",
    "--min-auc",
    "0",
)

# What a sound INT8 engine of conftest's model stays within, as the tests that use it show first.
SOUND = (*WIDE, "--int8-top1", "0.2", "--int8-log-loss", "0.02")


def run(checkpoint: Path, repository: Path, log: Path, *options: str) -> int:
    paths = {"--checkpoint": checkpoint, "--repository": repository, "--evaluation": log, "--calibration": log}
    paths["--report"] = repository.parent / "report.html"
    return main([*(str(part) for option in paths.items() for part in option), "--min-auc", "0", *options])


def engines(*names: str) -> list[str]:
    return [part for name in names for part in ("--engine", name)]
