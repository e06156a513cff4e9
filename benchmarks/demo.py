"""The whole main job, on real parts: a click log becomes a ranking on Triton.

Every step is the command that a user would type, shown before it runs. What is there is used: the sample, the
checkpoint, and the published version if its manifest names this very checkpoint and evaluation.
Then the model is served on free ports, the test split is scored through the server, and its AUC is held against the one
that PyTorch got. Nothing is left running.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load_gen.workload import WorkloadError, newest_version
from clickbert import Ranker
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.metrics import evaluate_ranking
from release.files import sha256
from release.manifest import CheckpointRecord, Manifest, ManifestError, hash_checkpoint, read_manifest
from release.names import ONNX_MODEL
from serving.server import Addresses, Server

DATA = Path("data/sample")
CHECKPOINT = Path("checkpoints/demo")
REPOSITORY = Path("model_repository")
LOG = CHECKPOINT.parent / "demo-triton.log"
PAIRS_A_CALL = 64
TOLERANCE = 5e-5  # of the AUC: equal to four decimals
LEAST_AUC = 0.75  # the untrained base has about 0.54, the best possible is 0.85


class DemoError(RuntimeError):
    """A step failed, or the served model is not the one that was trained."""


def run() -> dict[str, Any]:
    """Does what is not done yet, serves, ranks and compares.

    Returns:
        The result: server, model, metrics through the server, parity, and one ranking.

    Raises:
        DemoError: a step failed (it said why), or the AUC through the server is not PyTorch's.
    """
    test = DATA / "test.jsonl"
    if not test.exists():
        step("finetune", "sample", "--output", DATA)
    if not (CHECKPOINT / "model.safetensors").exists():
        step("finetune", "evaluate", "--checkpoint", "minilm", "--data", test)  # the base, to compare with
        step("finetune", "train", "--data", DATA, "--output", CHECKPOINT)
    if published(test) is None:
        step("export", "--checkpoint", CHECKPOINT, "--repository", REPOSITORY, "--evaluation", test, "--engine", "onnx")
    manifest = published(test)
    if manifest is None:
        raise DemoError(f"{REPOSITORY} holds no version of {CHECKPOINT} after the export; run `make clean`, then again")
    say(f"serve {REPOSITORY} on free ports; Triton's log is {LOG}")
    with LOG.open("wb") as log, Server(REPOSITORY, Addresses.free(), log=log) as server:
        return measure(server, manifest, read_click_log(test))


def step(package: str, *arguments: object) -> None:
    """Runs one of the project's commands, shown as it could be typed."""
    command = ["-m", package, *map(str, arguments)]
    say(f"python {shlex.join(command)}")
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        raise DemoError(f"`python {shlex.join(command)}` ended with code {code}")


def published(evaluation: Path) -> Manifest | None:
    """The newest version's manifest, if it is of the demo's checkpoint and of this evaluation file."""
    try:
        manifest = read_manifest(newest_version(REPOSITORY, ONNX_MODEL))
        checkpoint = CheckpointRecord(**hash_checkpoint(CHECKPOINT))
    except (WorkloadError, ManifestError):  # there is none, or nobody knows what it was made from
        return None
    return manifest if (manifest.checkpoint, manifest.evaluation.sha256) == (checkpoint, sha256(evaluation)) else None


def measure(server: Server, manifest: Manifest, rows: list[ClickRow]) -> dict[str, Any]:
    """Scores the test split through the server, checks its AUC, and ranks its first group."""
    pairs = [(row.query, row.document) for row in rows]
    scores: list[float] = []
    with Ranker(server.addresses.grpc, model=ONNX_MODEL, timeout=60) as ranker:
        say(f"score the {len(pairs)} pairs of the test split through the server")
        for start in tqdm(range(0, len(pairs), PAIRS_A_CALL), unit="call", leave=False):
            scores += ranker.score_pairs(pairs[start : start + PAIRS_A_CALL])
        first = [row for row in rows if row.group == rows[0].group]
        ranking = ranker.rank(first[0].query, [row.document for row in first], top_k=5)
    metrics = evaluate_ranking(rows, scores)
    wanted = manifest.evaluation.pytorch_metrics["auc"]
    if abs(metrics["auc"] - wanted) > TOLERANCE:
        raise DemoError(f"the AUC through the server is {metrics['auc']:.6f}, in PyTorch it was {wanted:.6f}")
    if metrics["auc"] < LEAST_AUC:
        raise DemoError(f"the AUC is {metrics['auc']:.4f}, a fine-tuned demo has {LEAST_AUC}: something went wrong")
    say(f"AUC through the server {metrics['auc']:.4f}, in PyTorch {wanted:.4f}")
    say(f"the best of {len(first)} candidates for: {shorten(first[0].query)}")
    for place, document in enumerate(ranking, 1):
        say(f"  {place}. {document.score:.3f}  {shorten(document.text)}")
    with server.get("/v2") as answer:
        about = json.load(answer)
    return {
        "server": {"name": about["name"], "version": about["version"]},
        "model": ONNX_MODEL,
        "metrics": metrics,
        "parity": {name: manifest.proof.parity[name] for name in ("max_abs_diff", "pairs")} if manifest.proof else {},
        "ranking": [{"index": item.index, "score": item.score, "text": item.text} for item in ranking],
    }


def shorten(text: str) -> str:
    """The start of a text, for a line on a screen."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def say(line: str) -> None:
    """Progress, on stderr: stdout carries the result."""
    print(f"demo: {line}", file=sys.stderr, flush=True)
