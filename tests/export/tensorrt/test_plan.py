"""`python -m export plan`: what is built, for which limits, and when. TensorRT and CUDA are fakes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from export import plan as plan_command
from export.graph.packing import Pair, add_longest, pack
from export.tensorrt.build import ExecutionLimits, build, check_graph, read_limits
from export.tensorrt.runtime import LoadedPlan, load_tensorrt
from export.verify.saved_gate import merge
from release import hardware
from release.manifest import write_manifest
from release.names import ONCE_TENSORRT_INPUTS, PLAN_FILE, TENSORRT_INPUTS
from release.stamp import STAMP_FILE, PlanError, PlanMachine, find_machine, misfit, read_stamp
from tests.export.tensorrt.fake_gpu import FEED, MODEL, Gpu, command, nvidia_smi, tree, write_graph
from tests.release.examples import MANIFEST

pytest_plugins = ("tests.export.tensorrt.gpu_fixtures",)
LIMITS = ExecutionLimits(requests=8, pairs=32, tokens=16384, longest=512)


def test_the_newest_version_gets_its_plan_and_then_fits(version: Path, gpu: Gpu, capsys) -> None:
    assert command(version) == 0
    assert json.loads(capsys.readouterr().out) == {"plans": {MODEL: {"version": 10, "plan": "built"}}}
    assert (version / PLAN_FILE).read_bytes() == b"plan 1"
    stamp = read_stamp(version)
    assert stamp.machine == PlanMachine(hardware.Gpu("NVIDIA L4", "8.9", "580.65.06"), "11.2.1.2")
    assert stamp.activation_bytes == 12345
    before = tree(version.parent)
    files = {"manifest.json", "manifest.json.sha256", "model.onnx"}
    assert {name[2:] for name in before if name.startswith("2/")} == files
    assert {name[3:] for name in before if name.startswith("10/")} == files | {"model.plan", "plan.json"}
    assert {name for name in before if "/" not in name} == {"config.pbtxt", "timing.cache"}
    assert command(version, "--model", MODEL) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"plans": {MODEL: {"version": 10, "plan": "fits"}}}
    assert "version 10: its plan fits NVIDIA L4 (compute capability 8.9)" in captured.err
    assert gpu.builds == 1
    assert tree(version.parent) == before
    assert not gpu.memory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "gpu",
            "was built for NVIDIA L4 (compute capability 8.9), driver 580.65.06, TensorRT 11.2.1.2; this is NVIDIA",
        ),
        ("tensorrt", "this is NVIDIA L4 (compute capability 8.9), driver 580.65.06, TensorRT 12.0"),
        ("graph", "model.onnx is not the one that plan.json describes"),
        ("plan", "model.plan is not the one that plan.json describes"),
        ("stamp", "plan.json cannot be read (JSONDecodeError"),
        ("no stamp", "plan.json cannot be read (FileNotFoundError"),
        ("limits", "built for other limits than the model's config.pbtxt has"),
    ],
)
def test_a_plan_that_does_not_fit_is_built_again(
    version: Path, gpu: Gpu, monkeypatch, tmp_path, change, message, capsys
):
    assert command(version) == 0
    if change == "gpu":
        nvidia_smi(monkeypatch, tmp_path, "NVIDIA H100 80GB HBM3, 9.0, 580.65.06")
    elif change == "tensorrt":
        gpu.tensorrt.__version__ = "12.0"
    elif change == "graph":
        write_graph(version / "model.onnx", quantized=True)
    elif change == "plan":  # as a kill between the exchange of the stamp and that of the plan leaves it
        (version / PLAN_FILE).write_bytes(b"plan 0")
    elif change == "stamp":
        (version / STAMP_FILE).write_text("{")
    elif change == "no stamp":
        (version / STAMP_FILE).unlink()
    elif change == "limits":
        config = version.parent / "config.pbtxt"
        config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    assert command(version) == 0
    assert message in capsys.readouterr().err
    assert (version / PLAN_FILE).read_bytes() == b"plan 2"
    assert command(version) == 0
    assert gpu.builds == 2


def test_the_profile_comes_from_config_and_manifest(version: Path, gpu: Gpu) -> None:
    assert command(version) == 0
    ids, counts = (1, 8 * 16 * 48, 8 * 32 * 512), (1, 8, 8)
    assert gpu.profile == {
        "input_ids": ids,
        "token_type_ids": ids,
        "lengths": (1, 128, 256),
        "longest": (1, 8 * 64, 8 * 512),
        "token_counts": counts,
        "type_counts": counts,
        "pair_counts": counts,
        "longest_shape": (1, 64, 512),
    }


def test_the_profile_of_a_model_that_computes_the_user_text_once(version: Path, gpu: Gpu) -> None:
    write_graph(version / "model.onnx", ONCE_TENSORRT_INPUTS)
    write_manifest(version, replace(MANIFEST, model=MODEL, max_length=512, user_tokens=254))
    build(gpu.tensorrt, version / "model.onnx", read_limits(version), b"")
    counts, users = (1, 8, 8), (1, 8, 8 * 32)
    assert gpu.profile == {
        "input_ids": (1, 8 * (32 + 16 * 16), 8 * 32 * 512),
        "user_lengths": users,
        "user_pairs": users,
        "lengths": (1, 128, 256),
        "longest": (1, 8 * 32, 8 * 512),
        "longest_user": (1, 8 * 64, 8 * 255),
        "token_counts": counts,
        "user_counts": counts,
        "user_pair_counts": counts,
        "pair_counts": counts,
        "longest_shape": (1, 32, 512),
        "longest_user_shape": (1, 64, 255),
    }


@pytest.mark.parametrize(("inputs", "user_tokens"), [(TENSORRT_INPUTS, 254), (ONCE_TENSORRT_INPUTS, None)])
def test_a_graph_of_the_other_kind_is_refused(version: Path, gpu: Gpu, capsys, inputs, user_tokens) -> None:
    write_graph(version / "model.onnx", inputs)
    write_manifest(version, replace(MANIFEST, model=MODEL, max_length=512, user_tokens=user_tokens))
    assert command(version) == 1
    assert "the graph's inputs are" in capsys.readouterr().err
    assert not gpu.builds


@pytest.mark.parametrize(
    "limits",
    [
        ExecutionLimits(1, 1, 1, 1),
        ExecutionLimits(2, 3, 50, 48),
        ExecutionLimits(64, 100, 300, 512),
        LIMITS,
        ExecutionLimits(1, 1, 1, 3, 1),
        ExecutionLimits(2, 3, 50, 48, 23),
        replace(LIMITS, longest_user=255),
    ],
)
def test_a_profile_is_in_order_and_no_smaller_than_the_batch(limits: ExecutionLimits) -> None:
    shapes = limits.shapes()
    assert set(shapes) == set(TENSORRT_INPUTS if limits.longest_user is None else ONCE_TENSORRT_INPUTS)
    assert all(1 <= low <= typical <= high for low, typical, high in shapes.values())
    assert shapes["token_counts"][2] == limits.requests
    assert shapes["input_ids"][2] <= limits.requests * limits.pairs * limits.longest


@pytest.mark.parametrize(
    "limits",
    [ExecutionLimits(1, 32, 16384, 512), ExecutionLimits(2, 4, 96, 48), ExecutionLimits(8, 4, 2048, 512), LIMITS],
)
def test_a_plan_takes_the_batches_of_its_gate(limits: ExecutionLimits) -> None:
    """However small config.pbtxt says that an execution is."""
    pairs: list[Pair] = [{"input_ids": [7] * limits.longest, "token_type_ids": [0] * limits.longest}] * 120
    for _, requests in merge(pairs, limits.requests, limits.pairs_of_any_length):
        feed = add_longest(pack(requests))
        assert all(len(feed[name]) <= most for name, (_, _, most) in limits.shapes().items())


@pytest.mark.parametrize(("strongly_typed", "flags"), [(True, 1 << 5), (False, 0)])
def test_strong_typing_is_asked_for_by_its_name(version: Path, strongly_typed: bool, flags: int) -> None:
    gpu = Gpu("11.2.1.2", strongly_typed)
    build(gpu.tensorrt, version / "model.onnx", LIMITS, b"")
    assert gpu.network_flags == flags
    assert not gpu.builder_flags
    assert gpu.tactic_sources is None
    assert gpu.parsed == (version / "model.onnx").read_bytes()


@pytest.mark.parametrize("quantized", [False, True])
def test_tensorrt_8_is_given_a_licence_for_half_precision_and_a_graph_without(version: Path, quantized: bool) -> None:
    gpu = Gpu("8.6.1")
    write_graph(version / "model.onnx", quantized=quantized)
    build(gpu.tensorrt, version / "model.onnx", LIMITS, b"")
    assert gpu.network_flags == 1 << 3
    assert gpu.builder_flags == ({"FP16", "INT8"} if quantized else {"FP16"})
    assert gpu.tactic_sources == 1 << 3 | 1 << 4
    graph = onnx.load_from_string(gpu.parsed).graph
    assert graph.initializer[0].data_type == TensorProto.FLOAT
    assert [node.attribute[0].i for node in graph.node if node.op_type == "Cast"] == [TensorProto.FLOAT] * 2


def test_tensorrt_8_counts_no_further_than_it_can(version: Path) -> None:
    build(Gpu("8.6.1").tensorrt, version / "model.onnx", ExecutionLimits(8, 32, 16384, 512), b"")  # config.pbtxt's
    for limits in (
        ExecutionLimits(9, 32, 16384, 512),
        ExecutionLimits(8, 33, 16384, 512),
        ExecutionLimits(8, 32, 16385, 512),
    ):
        with pytest.raises(
            PlanError, match=r"counts in half precision, which is too coarse for ExecutionLimits\(requests="
        ):
            build(Gpu("8.6.1").tensorrt, version / "model.onnx", limits, b"")
        build(Gpu("11.2.1.2").tensorrt, version / "model.onnx", limits, b"")


@pytest.mark.parametrize(
    ("former", "used"), [(b"timings", b"timings"), (b"of another GPU", b""), (b"corrupt", b""), (None, b"")]
)
def test_timings_are_kept_beside_the_versions(version: Path, gpu: Gpu, former: bytes | None, used: bytes) -> None:
    cache = version.parent / "timing.cache"
    if former is not None:
        cache.write_bytes(former)
    assert command(version) == 0
    assert gpu.timings == [used]
    assert cache.read_bytes() == used + b"+"


def test_ctrl_c_ends_a_build_at_once(version: Path, gpu: Gpu) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert command(version) == 0
        assert gpu.sigint_while_building == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_plan_gives_all_its_outputs_and_frees_their_memory(gpu: Gpu) -> None:
    gpu.outputs = {"logits": 1, "embedding": 3}
    gpu.profile = dict.fromkeys(FEED, (1, 4, 9))
    with LoadedPlan(gpu.tensorrt, b"plan") as plan:
        found = plan.run(FEED)
    assert {name: values.tolist() for name, values in found.items()} == {
        "logits": [[2], [3], [4]],
        "embedding": [[2] * 3, [3] * 3, [4] * 3],
    }
    assert not gpu.memory


@pytest.mark.parametrize(
    ("outputs", "fits"),
    [
        ({"embedding": ["pairs", 8]}, True),
        ({"topic_logits": ["pairs", 3], "passage_logits": ["pairs", 1]}, True),
        ({"pooled": ["pairs", 8]}, False),
        ({"embedding": ["pairs", "size"]}, False),
        ({"embedding": [8]}, False),
    ],
    ids=str,
)
def test_a_graph_may_have_the_further_heads_and_no_other_outputs(version: Path, outputs: dict, fits: bool) -> None:
    model = onnx.load(version / "model.onnx")
    value = onnx.helper.make_tensor_value_info
    model.graph.output.extend(value(name, TensorProto.FLOAT, dims) for name, dims in outputs.items())
    if fits:
        check_graph(model, LIMITS, version)
        return
    with pytest.raises(PlanError, match="they must be logits and any of topic_logits, embedding, passage_logits"):
        check_graph(model, LIMITS, version)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["full", "user_once"])
def test_both_plans_are_built_and_pass_their_gates(tmp_path: Path, attention: str) -> None:
    try:
        machine = find_machine(str(load_tensorrt().__version__))
    except PlanError as exc:
        pytest.skip(str(exc))
    from export.__main__ import main
    from tests.tiny import make_checkpoint, make_click_log, make_once_checkpoint

    repository = tmp_path / "repository"
    checkpoint = (make_checkpoint if attention == "full" else make_once_checkpoint)(tmp_path / "checkpoint")
    log = make_click_log(tmp_path / "clicks.jsonl", groups=45)
    options = {"checkpoint": checkpoint, "repository": repository, "evaluation": log, "calibration": log}
    options |= {"report": tmp_path / "report.html", "min-auc": 0, "fp16-auc": 0.01}
    options |= {"int8-auc": 1, "int8-ndcg": 1, "int8-top1": 1, "int8-log-loss": 1}
    engines = ["--engine", "trt_fp16", "--engine", "trt_int8"]  # a random model: INT8's ranking means nothing
    assert main([*engines, *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert plan_command.main([f"--repository={repository}"]) == 0
    versions = plan_command.newest_versions(repository, None)
    assert set(versions) == {"clickbert_trt_fp16", "clickbert_trt_int8"}
    for version in versions.values():
        assert misfit(version, [machine.gpu], machine.tensorrt, read_limits(version).shapes()) is None
