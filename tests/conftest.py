"""Fixtures that the whole run shares: one small model, published once as every engine, and served.

They import what they need when they are used, because tests/client runs where nothing but the client is installed.
What they return is read-only: a test that changes a file copies the folder first.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.figures import figures, pytest_terminal_summary  # noqa: F401

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from finetune.checkpoint.heads import Heads
    from serving.server import Server

with contextlib.suppress(ImportError):  # tests/client runs without it, too
    import hypothesis

    # No test asserts how long something takes, and hypothesis' own limit of 200 ms fails on a busy machine.
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")

# Before PyTorch is imported, here and in every process that a test starts: on models this small its threads only wait
# for each other, and for those of the other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime themselves


def pytest_configure() -> None:
    """Let the tests read the configs as they are for full attention, whatever was exported into the checkout last."""
    with contextlib.suppress(ImportError):  # tests/client runs without it, too
        import export.publish
        from export.configs import change_config
        from release.names import LOGITS

        copy = Path(tempfile.mkdtemp(prefix="clickbert-templates-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        ignored = shutil.ignore_patterns("[0-9]*")  # published versions
        shutil.copytree(export.publish.TEMPLATES, copy, dirs_exist_ok=True, ignore=ignored)
        for config in [*copy.glob("*/config.pbtxt"), *copy.glob("*/configs/*.pbtxt")]:
            model = config.relative_to(copy).parts[0]
            config.write_text(change_config(config, model, {LOGITS: 1}, once=False), encoding="utf-8")
        export.publish.TEMPLATES = copy


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; the workers of pytest-xdist all have the same one."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Has the first worker that asks make a file or folder; the others wait, and get the same."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            make(unfinished)
            unfinished.rename(path)
    return path


@pytest.fixture(scope="session")
def one_graph_for_each_model(shared: Path) -> Iterator[None]:
    """Most of an export's time is torch.onnx.export, which makes the same graph of the same model every time."""
    import export.pipeline

    write = export.pipeline.write_click_model
    folder = shared / "graphs"
    folder.mkdir(exist_ok=True)

    def write_once(model: BertForSequenceClassification, path: Path, heads: Heads, *, by_shapes: bool) -> None:
        content = hashlib.sha256(f"{by_shapes} {model.config.to_json_string()}".encode())
        for name, tensor in (*model.state_dict().items(), *heads.state_dict().items()):
            content.update(name.encode() + tensor.numpy().tobytes())
        graph = folder / f"{content.hexdigest()}.onnx"
        path.write_bytes(once(graph, lambda path: write(model, path, heads, by_shapes=by_shapes)).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.pipeline, "write_click_model", write_once)
        yield


@pytest.fixture(scope="session")
def published_checkpoint(shared: Path) -> Path:
    """The model that is published: two layers, one label, random weights."""
    from tests.tiny import make_checkpoint

    return once(shared / "checkpoint", make_checkpoint)


@pytest.fixture(scope="session")
def published_log(shared: Path) -> Path:
    """The click log that the published engines are calibrated and gated on: 50 impressions."""
    from tests.tiny import make_click_log

    return once(shared / "log.jsonl", lambda path: make_click_log(path, groups=50))


@pytest.fixture(scope="session")
def published_engines(
    one_graph_for_each_model: None, shared: Path, published_checkpoint: Path, published_log: Path
) -> Path:
    """A repository with version 1 of every engine. (Without a GPU the TensorRT engines are graphs without a plan.)"""
    from export.engines import find_engines
    from tests.published import publish

    return once(shared / "engines", lambda path: publish(published_checkpoint, path, published_log, *find_engines()))


@pytest.fixture(scope="session")
def joint_checkpoint(shared: Path) -> Path:
    """A jointly trained one, with every further head."""
    from tests.tiny import JOINT, make_checkpoint

    return once(shared / "joint-checkpoint", lambda path: make_checkpoint(path, heads=JOINT))


@pytest.fixture(scope="session")
def joint_engines(one_graph_for_each_model: None, shared: Path, joint_checkpoint: Path, published_log: Path) -> Path:
    """A repository with version 1 of every engine of the jointly trained checkpoint."""
    from export.engines import find_engines
    from tests.published import publish

    return once(shared / "joint-engines", lambda path: publish(joint_checkpoint, path, published_log, *find_engines()))


@pytest.fixture(scope="session")
def published_repository(shared: Path, published_engines: Path) -> Path:
    """The repository that is served: fp32 and INT8 on CPUs, and the tokenizer.

    A request may wait a minute in the queue, not ten seconds: a busy machine must not fail tests that ask for answers.
    """

    def copy(path: Path) -> None:
        shutil.copytree(published_engines, path, ignore=shutil.ignore_patterns("clickbert_trt_*"))
        for config in path.glob("clickbert_onnx*/config.pbtxt"):
            text = config.read_text(encoding="utf-8")
            patient = text.replace(
                '"deadline_seconds" value { string_value: "10" }', '"deadline_seconds" value { string_value: "60" }'
            )
            assert patient != text
            config.write_text(patient, encoding="utf-8")

    return once(shared / "repository", copy)


@pytest.fixture(scope="session")
def published_server(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the published repository; each worker of pytest-xdist has its own."""
    from tests.published import serve

    with serve(published_repository, log=tmp_path_factory.mktemp("served") / "triton.log") as server:
        yield server


@pytest.fixture(scope="session")
def once_checkpoint(shared: Path) -> Path:
    """A jointly trained one that computes the user text once."""
    from tests.tiny import JOINT, ONCE_USER_TOKENS, make_once_checkpoint

    return once(
        shared / "once-checkpoint", lambda path: make_once_checkpoint(path, user_tokens=ONCE_USER_TOKENS, heads=JOINT)
    )


@pytest.fixture(scope="session")
def once_engines(one_graph_for_each_model: None, shared: Path, once_checkpoint: Path, published_log: Path) -> Path:
    """A repository with version 1 of every engine of that checkpoint. Its graphs take PyTorch half a minute each."""
    from export.engines import find_engines
    from tests.published import publish

    return once(shared / "once-engines", lambda path: publish(once_checkpoint, path, published_log, *find_engines()))


@pytest.fixture(scope="session")
def once_repository(shared: Path, once_engines: Path) -> Path:
    """Of these, fp32 and INT8 on CPUs, and the tokenizer."""
    ignored = shutil.ignore_patterns("clickbert_trt_*")
    return once(shared / "once-repository", lambda path: shutil.copytree(once_engines, path, ignore=ignored))


@pytest.fixture(scope="session")
def once_server(once_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on it; each worker of pytest-xdist has its own."""
    from tests.published import serve

    with serve(once_repository, log=tmp_path_factory.mktemp("served-once") / "triton.log") as server:
        yield server
