"""A plan's stamp: read back as written, and the one rule that export and the server ask whether the plan fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from release.hardware import Gpu
from release.names import MODEL_FILE, PLAN_FILE
from release.stamp import STAMP_FILE, PlanError, PlanMachine, Profile, make_stamp, misfit, read_stamp

L4 = Gpu("NVIDIA L4", "8.9", "580.65.06")
MACHINE = PlanMachine(L4, "11.2.1.2")
PROFILE: Profile = {"input_ids": (1, 64, 512), "lengths": (1, 16, 32)}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    (tmp_path / MODEL_FILE).write_bytes(b"graph")
    (tmp_path / PLAN_FILE).write_bytes(b"plan")
    stamp = make_stamp(MACHINE, tmp_path / MODEL_FILE, tmp_path / PLAN_FILE, PROFILE, 12345, {"kendall_tau": 0.99})
    (tmp_path / STAMP_FILE).write_bytes(stamp)
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.tuples(*[st.integers()] * 3)))
def test_a_stamp_is_read_back_as_it_was_written(version: Path, name, capability, driver, tensorrt, profile) -> None:
    machine = PlanMachine(Gpu(name, capability, driver), tensorrt)
    graph = version / MODEL_FILE
    (version / STAMP_FILE).write_bytes(make_stamp(machine, graph, version / PLAN_FILE, profile, 1, None))
    stamp = read_stamp(version)
    assert (stamp.machine, stamp.profile, stamp.gate) == (machine, profile, None)
    assert misfit(version, [machine.gpu], tensorrt, profile) is None


def test_a_plan_fits_the_machine_that_it_was_built_on(version: Path) -> None:
    assert misfit(version, [L4, L4], "11.2.1.2", PROFILE) is None
    assert misfit(version, [L4]) is None  # as the server asks, which knows neither


@pytest.mark.parametrize(
    ("gpus", "tensorrt", "profile", "reason"),
    [
        (
            [Gpu("NVIDIA H100", "9.0", L4.driver)],
            None,
            None,
            "this is NVIDIA H100 (compute capability 9.0), driver 580",
        ),
        (
            [L4, Gpu("NVIDIA L4", "8.9", "590.1")],
            None,
            None,
            "this is NVIDIA L4 (compute capability 8.9), driver 590.1",
        ),
        ([L4], "12.0", None, "built for NVIDIA L4 (compute capability 8.9), driver 580.65.06, TensorRT 11.2.1.2; this"),
        ([L4], None, {"input_ids": (1, 64, 256)}, "other limits than the model's config.pbtxt has now"),
    ],
)
def test_a_plan_for_something_else_says_for_what(version: Path, gpus, tensorrt, profile, reason: str) -> None:
    assert reason in str(misfit(version, gpus, tensorrt, profile))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda version: (version / PLAN_FILE).unlink(), "it has no TensorRT plan (model.plan) yet"),
        (lambda version: (version / PLAN_FILE).write_bytes(b"plan 0"), "its model.plan is not the one that plan.json"),
        (lambda version: (version / MODEL_FILE).write_bytes(b"other"), "its model.onnx is not the one that plan.json"),
        (lambda version: (version / MODEL_FILE).unlink(), "its model.onnx is not the one that plan.json describes"),
        (lambda version: (version / STAMP_FILE).unlink(), "plan.json cannot be read (FileNotFoundError"),
        (lambda version: (version / STAMP_FILE).write_text("{"), "plan.json cannot be read (JSONDecodeError"),
        (lambda version: (version / STAMP_FILE).write_text("[]"), "plan.json has schema None, this release reads 1"),
        (lambda version: (version / STAMP_FILE).write_text('{"schema": 2}'), "plan.json has schema 2, this release"),
        (lambda version: (version / STAMP_FILE).write_text('{"schema": 1}'), "it has missing or unexpected fields"),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    version: Path, harm: Callable[[Path], object], reason: str
) -> None:
    harm(version)
    assert reason in str(misfit(version, [L4]))
    if "plan.json " in reason and "describes" not in reason:
        with pytest.raises(PlanError, match=r"plan\.json"):
            read_stamp(version)
