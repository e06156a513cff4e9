"""Runs the full pipeline: a click log becomes a ranking on Triton.

The click model is trained with all its layers and full attention, and then made fast: half of the layers, and the user
text computed once. That one is exported and served.

Every step is a command that a user would type, and it is shown before it runs. What is there already is used: the
sample, the checkpoint, and the published version if its manifest names this very checkpoint and evaluation. Then the
demo serves the model on free ports, scores the test split through the server, and holds its AUC against PyTorch's.
Nothing is left running.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from tqdm import tqdm

from benchmarks import BenchmarkError, say
from benchmarks.load_gen.target import Target
from benchmarks.measure.schema import ServerInfo, dump
from benchmarks.options import CHECKPOINT, REPOSITORY
from clickbert import ClickBertError, RankedDocument, Ranker
from clickbert.connection import Connection
from finetune.checkpoint.attention import USER_TOKENS_FIELD
from finetune.checkpoint.config import read_config
from finetune.checkpoint.files import CheckpointError, hash_checkpoint
from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.evaluation.metrics import MetricError, evaluate_ranking
from release import versions
from release.files import sha256
from release.manifest import Manifest, ManifestError, verify
from release.names import ONNX_MODEL
from serving.server import Addresses, Server
from serving.triton import ServingError

DATA = Path("data/sample")
FULL = CHECKPOINT.with_name("demo-full")  # all layers, full attention: what the served one learns from
LAYERS = 3  # of six
LOG = CHECKPOINT.parent / "demo-triton.log"
PAIRS_A_CALL = 64
TOLERANCE = 5e-5  # of the AUC: equal to four decimals


EXPECTED = (BenchmarkError, ServingError, ClickBertError, ClickLogError, CheckpointError, MetricError)


@dataclass(frozen=True)
class DemoResult:
    """The JSON document: the metrics are those of the scores through the server."""

    server: ServerInfo
    model: str
    metrics: dict[str, float]
    parity: dict[str, float]
    ranking: tuple[RankedDocument, ...]


def run(_: argparse.Namespace, least_auc: float = 0.75) -> int:
    """Does what is not done yet, serves, ranks and compares.

    Args:
        least_auc: of a model that has learned. The untrained base has about 0.55; the best possible is 0.86.

    Raises:
        BenchmarkError: a step failed (it said why), or the AUC through the server is not PyTorch's.
    """
    test = DATA / "test.jsonl"
    if not test.exists():
        step("finetune", "sample", "--output", DATA)
    if not (CHECKPOINT / "model.safetensors").exists():
        if not (FULL / "model.safetensors").exists():
            step("finetune", "evaluate", "--checkpoint", "minilm", "--data", test)  # the base, to compare with
            # The sample's clicks depend on the position, too; a text's own worth is learned better beside that.
            step("finetune", "train", "--data", DATA, "--position-bias", "estimated", "--output", FULL)
        step(
            "finetune", "train", "--from-checkpoint", FULL, "--layers", LAYERS, "--epochs", 1, "--data", DATA,
            "--output", CHECKPOINT,
        )  # fmt: skip
    check_fast(CHECKPOINT)
    if reusable_manifest(test) is None:
        step("export", "--checkpoint", CHECKPOINT, "--repository", REPOSITORY, "--evaluation", test, "--engine", "onnx")
    manifest = reusable_manifest(test)
    if manifest is None:
        raise BenchmarkError(
            f"{REPOSITORY} holds no version of {CHECKPOINT} after the export; run `make clean`, then again"
        )
    say("demo", f"serve {REPOSITORY} on free ports; Triton's log is {LOG}")
    with LOG.open("wb") as log, Server(REPOSITORY, Addresses.free(), log=log) as server:
        target = Target(Connection(server.addresses.grpc), REPOSITORY, server)
        print(dump(measure(target, manifest, read_click_log(test), least_auc)))
    return 0


def check_fast(folder: Path) -> None:
    """Raises BenchmarkError if a checkpoint is another one than the demo makes: a former release's, or one's own.

    CheckpointError if it cannot be read.
    """
    config = read_config(folder)
    if config.get("num_hidden_layers") != LAYERS or USER_TOKENS_FIELD not in config:
        raise BenchmarkError(
            f"{folder} is not the demo's model, which has {LAYERS} layers and computes the user text once: move it "
            "away if it is yours, or run `make clean`, then again"
        )


def step(package: str, *arguments: object) -> None:
    """Runs one of the project's commands, shown as it could be typed."""
    command = ["-m", package, *map(str, arguments)]
    say("demo", f"python {shlex.join(command)}")
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        raise BenchmarkError(f"`python {shlex.join(command)}` ended with code {code}")


def reusable_manifest(evaluation: Path) -> Manifest | None:
    """The newest version's manifest, if it is of the demo's checkpoint and of this evaluation file."""
    version = versions.newest(REPOSITORY, ONNX_MODEL)
    if version is None:
        return None
    try:
        manifest = verify(version)
    except ManifestError:  # damaged, or nobody knows what it was made from
        return None
    made_from = hash_checkpoint(CHECKPOINT), sha256(evaluation)
    return manifest if (manifest.checkpoint, manifest.evaluation.sha256) == made_from else None


def measure(target: Target, manifest: Manifest, rows: list[ClickRow], least_auc: float) -> DemoResult:
    """Scores the test split through the server, checks its AUC, and ranks its first group."""
    pairs = [(row.query, row.document) for row in rows]
    scores: list[float] = []
    with Ranker(target.connection, ONNX_MODEL, timeout=60) as ranker:
        say("demo", f"score the {len(pairs)} pairs of the test split through the server")
        for start in tqdm(range(0, len(pairs), PAIRS_A_CALL), unit="call", leave=False):
            scores += ranker.score_pairs(pairs[start : start + PAIRS_A_CALL])
        first = [row for row in rows if row.group == rows[0].group]
        ranking = ranker.rank(first[0].query, [row.document for row in first], top_k=5)
    metrics = evaluate_ranking(rows, scores)
    check_served_auc(metrics["auc"], manifest.evaluation.pytorch_metrics["auc"], least_auc)
    say("demo", f"the best of {len(first)} candidates for: {shorten(first[0].query, 80)}")
    for place, document in enumerate(ranking, 1):
        say("demo", f"  {place}. {document.score:.3f}  {shorten(document.text, 80)}")
    parity = manifest.proof.parity if manifest.proof else {}
    return DemoResult(target.info(), ONNX_MODEL, metrics, parity, tuple(ranking))


def check_served_auc(auc: float, reference: float, least: float) -> None:
    """Raises BenchmarkError unless the AUC through the server is PyTorch's, and that of a model that has learned."""
    if not abs(auc - reference) <= TOLERANCE:
        raise BenchmarkError(f"the AUC through the server is {auc:.6f}, but {reference:.6f} in PyTorch")
    if auc < least:
        raise BenchmarkError(
            f"the AUC is only {auc:.4f}, and a fine-tuned demo reaches {least}: run `make clean`, then again"
        )
    say("demo", f"AUC through the server {auc:.4f}, in PyTorch {reference:.4f}")
