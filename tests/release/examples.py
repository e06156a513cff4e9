"""A manifest with something in every field."""

from __future__ import annotations

from release.expected import CANDIDATES, SCORES, TOKENS, Expected
from release.manifest import CheckpointRecord, EvaluationRecord, GateRecord, Manifest, Proof

EXPECTED = Expected(
    scores=dict.fromkeys(SCORES, 0.05),
    candidates=dict.fromkeys(CANDIDATES, 0.0) | {"5": 0.25, "10": 0.75},
    tokens=dict.fromkeys(TOKENS, 0.0) | {"32": 1.0},
    truncated=0.125,
    unknown=0.01,
)
MANIFEST = Manifest(
    model="clickbert_onnx_int8",
    version=7,
    checkpoint=CheckpointRecord("größe", "a1", {"config.json": "b2"}),
    labels=("no click", "click"),
    click_label=1,
    max_length=512,
    evaluation=EvaluationRecord("test.jsonl", "c3", {"auc": 0.79}),
    calibration="train.jsonl.gz",
    keep_fp32=("layer0.fused_qkv",),
    tokenizer_sha256="d4",
    tools={"python": "3.11.7"},
    proof=Proof(
        engine="onnx_int8",
        precision="int8",
        parity={"max_abs_diff": 1e-6},
        comparison={"kendall_tau": 0.99, "metrics": {"auc": {"difference": -0.001}}},
        gate=(GateRecord("loss of AUC", 0.001, 0.002, True),),
        largest_fp16_activations={},
        bytes=12_345,
        cpu_pairs_per_second=None,
    ),
    expected=EXPECTED,
)
