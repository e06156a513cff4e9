"""Builds a TensorRT plan from a published version's graph, proves it on the GPU at hand, and puts it in place.

The graph itself types every tensor (strong typing), so the builder chooses kernels, never precisions.
What this module does not know: what the graph computes, and what the gate demands (`export.verify.gates`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from export.graph.lint import type_and_shape
from export.graph.packing import Feed, Outputs
from export.tensorrt.runtime import LoadedPlan
from export.tensorrt.trt86 import counts_are_exact, without_half_types
from release.files import STAGING, sync, write_whole
from release.lock import locked
from release.manifest import ManifestError, read_manifest
from release.names import (
    CONFIG_FILE,
    COUNT_INPUTS,
    HEAD_OUTPUTS,
    LOGITS,
    LONGEST,
    LONGEST_SHAPE,
    LONGEST_USER,
    LONGEST_USER_SHAPE,
    MODEL_FILE,
    ONCE_COUNT_INPUTS,
    ONCE_REQUEST_INPUTS,
    PLAN_FILE,
    REQUEST_INPUTS,
)
from release.stamp import STAMP_FILE, PlanError, PlanMachine, Profile, make_stamp

TIMING_CACHE = "timing.cache"
# The builder chooses kernels for full batches of title ranking. Everything up to the limits runs, if not as fast.
TYPICAL_PAIRS, TYPICAL_TOKENS, TYPICAL_LONGEST = 16, 48, 64  # of a request; of a pair; the longest of an execution
# The same where a user text is computed once: tokens of a user text and of a candidate, and the longest of both.
TYPICAL_USER, TYPICAL_CANDIDATE, TYPICAL_LONGEST_USER, TYPICAL_LONGEST_CANDIDATE = 32, 16, 64, 32
OTHER_LIBRARIES = ("CUBLAS", "CUBLAS_LT", "CUDNN")

Run = Callable[[Feed], Outputs]
PlanGate = Callable[[Run], "dict[str, Any] | None"]


@dataclass(frozen=True)
class ExecutionLimits:
    """How large an execution can be: from config.pbtxt, and the longest pair from the version's manifest."""

    requests: int  # merged into one execution
    pairs: int  # of one request
    tokens: int  # of one request
    longest: int  # tokens of a pair
    longest_user: int | None = None  # tokens of a user's segment, where it is computed once; None: full attention

    @property
    def pairs_of_any_length(self) -> int:
        """How many pairs a request may have, however long they are."""
        return max(1, min(self.pairs, self.tokens // self.longest))

    def shapes(self) -> Profile:
        """Smallest, typical and largest length of every input (all inputs are vectors): the optimization profile."""
        typical_pairs, pairs = self.requests * min(TYPICAL_PAIRS, self.pairs), self.requests * self.pairs
        # Triton takes the least of all largest lengths for the plan's batch size, and refuses a plan where that is less
        # than max_batch_size.
        counts = (1, self.requests, self.requests)
        if self.longest_user is None:
            return {
                **dict.fromkeys(REQUEST_INPUTS[:2], self.tokens_of(typical_pairs * min(TYPICAL_TOKENS, self.longest))),
                REQUEST_INPUTS[2]: (1, typical_pairs, pairs),
                **dict.fromkeys(COUNT_INPUTS, counts),
                **self.claimed(LONGEST, LONGEST_SHAPE, TYPICAL_LONGEST, self.longest),
            }
        typical_tokens = self.requests * TYPICAL_USER + typical_pairs * TYPICAL_CANDIDATE
        return {
            ONCE_REQUEST_INPUTS[0]: self.tokens_of(typical_tokens),
            **dict.fromkeys(ONCE_REQUEST_INPUTS[1:3], (1, self.requests, pairs)),
            ONCE_REQUEST_INPUTS[3]: (1, typical_pairs, pairs),
            **dict.fromkeys(ONCE_COUNT_INPUTS, counts),
            **self.claimed(LONGEST, LONGEST_SHAPE, TYPICAL_LONGEST_CANDIDATE, self.longest),
            **self.claimed(LONGEST_USER, LONGEST_USER_SHAPE, TYPICAL_LONGEST_USER, self.longest_user),
        }

    def tokens_of(self, typical: int) -> tuple[int, int, int]:
        """The profile of `input_ids`: a well-formed request has no more tokens than its longest pairs."""
        most = self.requests * min(self.tokens, self.pairs * self.longest)
        return 1, min(typical, most), most

    def claimed(self, brought: str, shape: str, typical: int, most: int) -> Profile:
        """The profile of what requests bring for the longest of their texts, and of what Triton makes of it."""
        typical = min(typical, most)
        return {brought: (1, self.requests * typical, self.requests * most), shape: (1, typical, most)}


def read_limits(version: Path) -> ExecutionLimits:
    """The limits of a published version, and whether it computes a user text once.

    Raises:
        PlanError: config.pbtxt or manifest.json lacks one, or they contradict each other.
    """
    config_file = version.parent / CONFIG_FILE
    try:
        manifest = read_manifest(version)
    except ManifestError as exc:
        raise PlanError(str(exc)) from exc
    try:
        config = text_format.Parse(config_file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        allowed = {
            name: int(config.parameters[f"max_elements.{name}"].string_value)
            for name in ("lengths", "input_ids", LONGEST)
        }
    except (text_format.ParseError, ValueError, KeyError, TypeError) as exc:
        raise PlanError(
            f"{config_file} must have max_elements.lengths, .input_ids and .{LONGEST} "
            f"({type(exc).__name__}: {exc}); restore it from git"
        ) from exc
    if config.max_batch_size < 1:
        raise PlanError(f"{config_file}: max_batch_size is {config.max_batch_size}; it must be at least 1")
    if manifest.max_length > allowed[LONGEST]:
        raise PlanError(
            f"{version}: its pairs have up to {manifest.max_length} tokens, {config_file} allows "
            f"{allowed[LONGEST]}; raise max_elements.{LONGEST} there (memory grows with its square)"
        )
    longest_user = None if manifest.user_tokens is None else manifest.user_tokens + 1  # and its [SEP]
    return ExecutionLimits(
        config.max_batch_size, allowed["lengths"], allowed["input_ids"], manifest.max_length, longest_user
    )


def check_graph(model: onnx.ModelProto, limits: ExecutionLimits, where: Path) -> None:
    """Checks, before a build of minutes, that the graph has exactly the inputs and the outputs of a click model.

    Raises:
        PlanError: a tensor is missing, or has another name, type or rank.
    """
    found = {value.name: type_and_shape(value) for value in model.graph.input}
    expected = {name: (TensorProto.INT32, [None]) for name in limits.shapes()}
    if found != expected:
        raise PlanError(f"{where}: the graph's inputs are {found}, they must be {expected}; export again")
    outputs = {value.name: type_and_shape(value) for value in model.graph.output}
    if (
        LOGITS not in outputs
        or not outputs.keys() <= {LOGITS, *HEAD_OUTPUTS}
        or not all(
            kind == TensorProto.FLOAT and len(dims) == 2 and dims[0] is None and dims[1]
            for kind, dims in outputs.values()
        )
    ):
        raise PlanError(
            f"{where}: the graph's outputs are {outputs}, they must be {LOGITS} and any of {', '.join(HEAD_OUTPUTS)}, "
            "each float32 [pairs, a number]"
        )


def build(trt: Any, graph: Path, limits: ExecutionLimits, cache: bytes) -> tuple[bytes, bytes]:
    """Builds a plan of the graph for the first GPU.

    Args:
        trt: TensorRT's Python package: 8.6, 10 or 11.
        graph: the typed model.onnx.
        limits: how large an execution can be.
        cache: the timing cache of former builds, or nothing.

    Returns:
        The serialized plan, and the timing cache with what this build measured.

    Raises:
        PlanError: the graph cannot be built, or TensorRT failed; quotes its errors.
    """
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except (DecodeError, FileNotFoundError) as exc:
        raise PlanError(f"{graph} is missing or damaged ({exc}); export the model again") from exc
    check_graph(model, limits, graph)
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as exc:  # so the bindings report that CUDA could not be initialized
        raise PlanError(f"TensorRT {trt.__version__} found no usable GPU here: {last_errors(log, exc)}") from exc
    config = builder.create_builder_config()
    if is_strongly_typed(trt):
        network, content = builder.create_network(strong_typing(trt)), graph.read_bytes()
    elif counts_are_exact(limits.requests, limits.pairs, limits.tokens):
        network, content = allow_half_precision(trt, builder, config, onnx.load(str(graph)))
    else:
        raise PlanError(
            f"{graph}: TensorRT {trt.__version__} counts in half precision, which is too coarse for {limits}; restore "
            "max_batch_size and max_elements in config.pbtxt, or use TensorRT 10 or later"
        )
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content, str(graph)):
        errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise PlanError(f"{graph}: TensorRT {trt.__version__} cannot read it: {errors}")
    profile = builder.create_optimization_profile()
    for name, (smallest, typical, largest) in limits.shapes().items():
        profile.set_shape(name, (smallest,), (typical,), (largest,))
    # One profile: a second would cost a second execution context, and Triton chooses between them by the requests' own
    # inputs, without looking at the longest pair. See docs/decisions/0007.
    if config.add_optimization_profile(profile) < 0:
        raise PlanError(f"{graph}: TensorRT refused the optimization profile {limits.shapes()}: {last_errors(log)}")
    timings = config.create_timing_cache(cache)
    # TensorRT refuses timings of another GPU or version; then it measures from scratch.
    if timings is None or not config.set_timing_cache(timings, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    with signals_end_the_process():
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(f"{graph}: TensorRT {trt.__version__} built no plan: {last_errors(log)}")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def strong_typing(trt: Any) -> int:
    """The network's flags for strong typing: TensorRT 11 knows nothing else, ignores the flag, and may drop it."""
    # By name, never by number: the bit of STRONGLY_TYPED is another flag's in older versions.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def is_strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT takes the types of the graph; 8.6 does not."""
    return strong_typing(trt) != 0 or int(trt.__version__.split(".")[0]) > 10


def allow_half_precision(trt: Any, builder: Any, config: Any, model: onnx.ModelProto) -> tuple[Any, bytes]:
    """TensorRT 8.6: the licence for FP16 (and INT8) goes into `config`; returns the network, and the graph to parse."""
    config.set_flag(trt.BuilderFlag.FP16)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        config.set_flag(trt.BuilderFlag.INT8)
    # Its own kernels only: these libraries are not part of it, and need not be there.
    sources = trt.TacticSource.__members__.items()
    config.set_tactic_sources(sum(1 << int(value) for name, value in sources if name not in OTHER_LIBRARIES))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    return network, without_half_types(model).SerializeToString()


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps the errors for the message (the API only returns None), and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def last_errors(log: Any, otherwise: object = "it gave no reason") -> str:
    """The last errors that TensorRT logged."""
    return "; ".join(log.errors[-3:]) or str(otherwise)


@contextmanager
def signals_end_the_process() -> Iterator[None]:
    """Ctrl-C ends the process at once inside the block, unless it is ignored (nohup).

    TensorRT does not return to Python for minutes, and Python's own handler would wait as long. Half-written files then
    lie in a staging folder, which the next export clears.
    """
    in_main = threading.current_thread() is threading.main_thread()  # no other thread may set signals
    if not in_main or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def rebuild(trt: Any, version: Path, machine: PlanMachine, gate: PlanGate) -> None:
    """Builds the plan of a published version, proves it and puts it in place; keeps the timing cache beside it.

    Args:
        version: the version's folder, with `model.onnx`.
        machine: where the plan is built; goes into its stamp.
        gate: is given the plan as a function of one packed batch; raises if the plan is not good enough.

    Raises:
        PlanError: it could not be built, or failed its gate. The former plan and its stamp are as they were.
    """
    limits = read_limits(version)
    cache = version.parent / TIMING_CACHE
    try:
        plan, timings = build(trt, version / MODEL_FILE, limits, cache.read_bytes() if cache.exists() else b"")
        with locked(version.parent.parent, wait=True):  # other versions of the model have it, too
            write_whole(cache, timings)
        put_in_place(version, plan, machine, limits.shapes(), gate, lambda content: LoadedPlan(trt, content))
    except OSError as exc:
        raise PlanError(
            f"writing into {version.parent} failed: {exc.strerror} ({exc.filename or 'no file named'}); the former "
            "plan, if there was one, is untouched"
        ) from exc


def put_in_place(
    version: Path,
    plan: bytes,
    machine: PlanMachine,
    profile: Profile,
    gate: PlanGate,
    load: Callable[[bytes], AbstractContextManager[LoadedPlan]],
) -> None:
    """Stages the plan, runs the gate on the staged file, then replaces the stamp and the plan.

    The stamp goes first: a kill between the two leaves the former plan beside a stamp with another hash, which `misfit`
    recognizes. So no plan ever passes for another.

    Raises:
        PlanError: the gate failed. Whatever is raised, the former plan and stamp are as they were.
    """
    staged, stamp = version / f"{PLAN_FILE}{STAGING}", version / STAMP_FILE
    former = stamp.read_bytes() if stamp.exists() else None
    placed = False
    try:
        staged.write_bytes(plan)
        sync(staged)
        with load(staged.read_bytes()) as engine:
            activation_bytes = engine.activation_bytes
            try:
                figures = gate(engine.run)
            except Exception as exc:
                raise PlanError(f"{version}: the plan failed its gate, and was not put in place: {exc}") from exc
        write_whole(stamp, make_stamp(machine, version / MODEL_FILE, staged, profile, activation_bytes, figures))
        staged.replace(version / PLAN_FILE)
        placed = True
        sync(version)
    except BaseException:
        staged.unlink(missing_ok=True)  # first, so that a full disk has room again
        if former is None and not placed:
            stamp.unlink(missing_ok=True)
        elif former is not None and not placed and stamp.read_bytes() != former:
            write_whole(stamp, former)
        raise
