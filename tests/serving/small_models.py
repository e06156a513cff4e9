"""Writes small models with a config each, for tests of the server and of its backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
from onnx import helper

from release.manifest import write_manifest
from tests.release.examples import MANIFEST


def write_model(
    repository: Path, name: str, nodes: list, inputs: list, outputs: list, config: str, constants: tuple = ()
) -> None:
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, repository / name / "1" / "model.onnx")
    write_manifest(repository / name / "1", replace(MANIFEST, model=name, version=1))
    (repository / name / "config.pbtxt").write_text(f'name: "{name}" backend: "packed_cpu"\n{config}')


def value(name: str, kind: int, *dims: object) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(dims))
