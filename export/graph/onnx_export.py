"""Writes the two graphs of a published version: the packed click model, and the constants that its clients need.

What this module does not know: whether the graph is right (`export.verify.parity` proves that), and where it goes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import BertForSequenceClassification

from export.graph.lint import type_and_shape
from export.graph.packed.once_by_shapes import ShapedOnceBert
from export.graph.packed.packed_bert import PackedBert, output_widths
from export.graph.packed.user_once import OnceBert
from export.graph.packing import add_longest, pack
from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.heads import Heads, HeadSettings
from release.expected import Expected
from release.names import (
    CLICK_LABEL,
    COUNT_INPUTS,
    EXPECTED,
    GRAPH_INPUTS,
    HEADS_JSON,
    KEPT,
    KEPT_INPUTS,
    LABELS_JSON,
    MAX_LENGTH,
    ONCE_COUNT_INPUTS,
    ONCE_GRAPH_INPUTS,
    ONCE_TENSORRT_INPUTS,
    TOKENIZER_JSON,
    TOKENIZER_SHA256,
    USER_TOKENS,
)

OPSET = 18  # the exporter's own; TensorRT 8.6 and later, and every current ONNX Runtime, read it


class GraphError(RuntimeError):
    """The exporter failed, or wrote another graph than it was asked for."""


def write_click_model(
    model: BertForSequenceClassification, path: Path, heads: Heads | None = None, *, by_shapes: bool = False
) -> None:
    """Exports `model` with its further heads as the packed graph to `path` (tensors: see `PackedBert.forward`).

    `by_shapes`: the user text is computed once, and the graph is TensorRT's (`ShapedOnceBert`).

    Raises:
        UnsupportedModelError: a BERT variant that the packed graph does not reproduce.
        GraphError: the export failed.
    """
    once = user_tokens(model.config) is not None
    packed = (ShapedOnceBert if by_shapes else OnceBert if once else PackedBert)(model, heads).eval()
    widths = output_widths(model, packed.heads)
    # Any valid batch works. All sizes differ, and none is 0 or 1: the exporter would make constants of those.
    pairs = [
        {"input_ids": [user] * (user + 2) + [0] * candidate, "token_type_ids": [0] * (user + 2) + [1] * candidate}
        for user, candidate in ((1, 2), (1, 4), (2, 1), (3, 5), (3, 3), (3, 2))
    ]
    feed = pack([pairs[:3], pairs[3:5], pairs[5:]], once=once)
    if by_shapes:
        feed = {name: add_longest(feed)[name] for name in ONCE_TENSORRT_INPUTS}
    example = tuple(torch.from_numpy(array) for array in feed.values())
    counts = (*COUNT_INPUTS, *ONCE_COUNT_INPUTS)
    shapes: list[dict[int, str]] = [{0: "requests" if name in counts else f"{name}_size"} for name in feed]
    names, outputs = list(feed), list(widths)
    if isinstance(packed, OnceBert):
        nothing = packed.nothing_kept()
        example += (torch.zeros(7, dtype=torch.int32), nothing[1].repeat(1, 5, 1, 6, 1))
        shapes += [{0: "kept_users"}, {1: "known", 3: "longest"}]
        names, outputs = [*names, *KEPT_INPUTS], [*outputs, KEPT]
    # The exporter logs and warns about its own internals (torchvision, pytree, renamed axes).
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                packed,
                example,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=tuple(shapes),
            )
            if program is None:
                raise GraphError("torch.onnx.export returned no graph")
            for node in program.model.graph:
                for value in node.outputs:  # the exporter names what torch's `embedding` returns like our output
                    if value.name in widths and not value.is_graph_output():
                        value.name = f"{value.name}_inside"
            program.model.metadata_props[MAX_LENGTH] = str(packed.max_length)  # packed_cpu refuses longer pairs by it
            program.save(path)
    except torch.onnx.OnnxExporterError as exc:
        raise GraphError(f"torch {torch.__version__} could not export the packed graph: {exc}") from exc
    if isinstance(packed, OnceBert):
        add_defaults(path, dict(zip(KEPT_INPUTS, nothing, strict=True)))
    check_click_model(path, widths, once=once, by_shapes=by_shapes)


def add_defaults(path: Path, defaults: Mapping[str, torch.Tensor]) -> None:
    """Gives inputs of a graph default values, so that who does not know them need not set them."""
    graph = onnx.load(str(path))
    graph.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in defaults.items())
    onnx.save(graph, str(path))


def check_click_model(path: Path, widths: Mapping[str, int], *, once: bool = False, by_shapes: bool = False) -> None:
    """Reads the graph back and compares its inputs, and its outputs with their `widths`, with Triton's config.

    `once`: it is the graph that computes a user text once; `by_shapes`: TensorRT's form of that.

    Raises:
        GraphError: the file is not valid ONNX, or a tensor has the wrong name, type or rank.
    """
    try:
        onnx.checker.check_model(str(path))
        graph = onnx.load(str(path), load_external_data=False).graph
    except (onnx.checker.ValidationError, ValueError, OSError) as exc:
        raise GraphError(f"{path} is not a valid ONNX graph: {exc}") from exc
    found = {value.name: type_and_shape(value) for value in (*graph.input, *graph.output)}
    if once and not by_shapes:
        defaults = {tensor.name for tensor in graph.initializer}
        if not {*KEPT_INPUTS} <= defaults & found.keys() or KEPT not in found:
            raise GraphError(f"{path}: user texts cannot be kept; needed are {KEPT} and {KEPT_INPUTS} with defaults")
        found = {name: shape for name, shape in found.items() if name not in (KEPT, *KEPT_INPUTS)}
    inputs = ONCE_TENSORRT_INPUTS if by_shapes else ONCE_GRAPH_INPUTS if once else GRAPH_INPUTS
    expected = {name: (TensorProto.INT32, [None]) for name in inputs} | {
        name: (TensorProto.FLOAT, [None, width]) for name, width in widths.items()
    }
    if found != expected:
        raise GraphError(f"{path}: the graph's tensors are {found}, they must be {expected}")


def write_tokenizer(
    tokenizer_json: bytes,
    max_length: int,
    labels: list[str],
    click_label: int,
    heads: HeadSettings,
    path: Path,
    kept: int | None = None,
    expected: Expected | None = None,
) -> str:
    """Writes the graph of constants behind `clickbert_tokenizer` (tensors: its config.pbtxt) and returns the hash.

    `kept` are the tokens that a user text keeps (`finetune.checkpoint.attention.user_tokens`); None: full attention.
    `expected` is what the evaluation log was; the clients get what it says of the inputs.

    Returns:
        sha256 of `tokenizer_json`, hexadecimal.
    """
    digest = hashlib.sha256(tokenizer_json).hexdigest()
    settings = {name: value for name, value in asdict(heads).items() if name != "schema"} | {USER_TOKENS: kept}
    if expected:
        settings[EXPECTED] = expected.of_inputs()
    text = {
        TOKENIZER_JSON: tokenizer_json,
        LABELS_JSON: json.dumps(labels, ensure_ascii=False).encode(),
        HEADS_JSON: json.dumps(settings, ensure_ascii=False).encode(),
    }
    nodes, outputs = [], []
    for name, data in text.items():
        # Triton's ONNX Runtime backend needs a dynamic dimension in the graph where config.pbtxt has one. Compress with
        # a mask of ones is the identity, but shape inference cannot tell its length.
        array = np.frombuffer(data, dtype=np.uint8)
        nodes += [
            constant(f"{name}_bytes", array),
            constant(f"{name}_all", np.ones(array.shape, dtype=np.bool_)),
            helper.make_node("Compress", [f"{name}_bytes", f"{name}_all"], [name], axis=0),
        ]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}_length"]))
    fixed: dict[str, np.ndarray] = {
        TOKENIZER_SHA256: np.array(list(digest.encode()), dtype=np.uint8),
        MAX_LENGTH: np.array([max_length], dtype=np.int32),
        CLICK_LABEL: np.array([click_label], dtype=np.int32),
    }
    for name, array in fixed.items():
        nodes.append(constant(name, array))
        outputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    graph = helper.make_graph(nodes, "clickbert_tokenizer", [], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return digest


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    """A node that yields `array` under `name`."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
