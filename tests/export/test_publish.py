"""Publishing is whole or not at all: errors, Ctrl-C, kills, a full disk, two exports at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.configs import change_config
from export.publish import STAGING, TEMPLATES, PublishError, staged
from release.lock import LockError, locked
from release.names import (
    CONFIG_FILE,
    EMBEDDING,
    HEADS_JSON,
    LOGITS,
    MODEL_FILE,
    ONNX_MODEL,
    PASSAGE_LOGITS,
    TOKENIZER_MODEL,
    TOPIC_LOGITS,
    VARIANTS,
)
from release.versions import withdraw
from tests.waiting import eventually

MODELS = [TOKENIZER_MODEL, ONNX_MODEL]
CLICK = {LOGITS: 1}
VARIANT = f"{VARIANTS}/onnxruntime.pbtxt"


def publish(repository: Path, content: bytes = b"weights", labels: int = 1, heads: dict[str, int] | None = None) -> int:
    with staged(repository, MODELS, {LOGITS: labels} | (heads or {})) as (number, folders):
        for folder in folders.values():
            (folder / MODEL_FILE).write_bytes(content)
    return number


def tree(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_versions_count_up_over_all_models(tmp_path: Path) -> None:
    assert publish(tmp_path) == 1
    (tmp_path / "clickbert_other" / "7").mkdir(parents=True)
    assert publish(tmp_path) == 8
    found = {path.name for path in (tmp_path / ONNX_MODEL).iterdir()}
    assert found == {"1", "8", CONFIG_FILE, VARIANTS, "warmup"}


@pytest.mark.parametrize("model", [ONNX_MODEL, "clickbert_onnx_int8"])
@pytest.mark.parametrize("name", [CONFIG_FILE, VARIANT])
def test_the_demos_export_changes_no_config_in_git(model: str, name: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout of git")
    command = ["git", "show", f"HEAD:model_repository/{model}/{name}"]
    text = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    (tmp_path / "config").write_text(text)
    assert change_config(tmp_path / "config", model, CLICK, once=True) == text


def test_a_new_repository_gets_the_configs_and_an_edited_one_keeps_its_own(tmp_path: Path) -> None:
    publish(tmp_path)
    for name in (CONFIG_FILE, VARIANT):
        config = tmp_path / ONNX_MODEL / name
        assert config.read_text() == (TEMPLATES / ONNX_MODEL / name).read_text()
        edited = config.read_text() + "# mine\n"
        config.write_text(edited)
        publish(tmp_path)
        assert config.read_text() == edited


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("name", [CONFIG_FILE, VARIANT])
def test_the_config_has_as_many_labels_as_the_checkpoint(tmp_path: Path, labels: int, name: str) -> None:
    publish(tmp_path, labels=3)
    publish(tmp_path, labels=labels)
    assert list(read(tmp_path, name=name).output[0].dims) == [-1, labels]
    assert (tmp_path / ONNX_MODEL / name).read_text().startswith("# The click model")


HEADS = {TOPIC_LOGITS: 4, EMBEDDING: 128}


def read(repository: Path, model: str = ONNX_MODEL, name: str = CONFIG_FILE) -> model_config_pb2.ModelConfig:
    text = (repository / model / name).read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("own", ["", "# the user's last line", "\n\n# the user's last lines\n\n"])
@pytest.mark.parametrize("name", [CONFIG_FILE, VARIANT])
def test_the_config_has_the_further_heads_of_the_newest_version(tmp_path: Path, own: str, name: str) -> None:
    publish(tmp_path)
    config = tmp_path / ONNX_MODEL / name
    config.write_text(config.read_text() + own)
    plain = config.read_text()
    for heads in (HEADS, {EMBEDDING: 64, PASSAGE_LOGITS: 1}):
        publish(tmp_path, heads=heads)
        found = read(tmp_path, name=name)
        widths = {output.name: list(output.dims) for output in found.output}
        assert widths == {name: [-1, width] for name, width in (CLICK | heads).items()}
        assert {output.data_type for output in found.output} == {model_config_pb2.TYPE_FP32}
        assert [(list(one.target_name), list(one.source_input)) for one in found.batch_output] == [
            ([name], ["lengths"]) for name in widths
        ]
        assert found.parameters["optional_outputs"].string_value.split() == list(heads)
        assert config.read_text().startswith(plain), "nothing else has changed"
    publish(tmp_path)
    assert config.read_text() == plain


def test_what_a_user_adds_behind_the_heads_stays(tmp_path: Path) -> None:
    publish(tmp_path)
    config = tmp_path / ONNX_MODEL / CONFIG_FILE
    plain = config.read_text()
    publish(tmp_path, heads=HEADS)
    with config.open("a") as file:
        file.write("# mine\n")
    publish(tmp_path, heads={EMBEDDING: 2})
    assert [output.name for output in read(tmp_path).output] == [LOGITS, EMBEDDING]
    publish(tmp_path)
    assert config.read_text() == f"{plain}# mine\n"


def test_a_head_that_the_user_wrote_is_refused_before_the_work(tmp_path: Path) -> None:
    publish(tmp_path)
    config = tmp_path / ONNX_MODEL / CONFIG_FILE
    config.write_text(config.read_text() + 'output [ { name: "embedding" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]')
    before = tree(tmp_path)
    with pytest.raises(PublishError, match="remove the output embedding"), staged(tmp_path, MODELS, CLICK | HEADS):
        pytest.fail("the block ran")
    assert tree(tmp_path) == before


def test_a_tokenizers_config_of_a_former_release_gets_the_output_that_it_lacks(tmp_path: Path) -> None:
    publish(tmp_path)
    config = tmp_path / TOKENIZER_MODEL / CONFIG_FILE
    current = config.read_text()
    names = [output.name for output in read(tmp_path, TOKENIZER_MODEL).output]
    assert names[-1] == HEADS_JSON
    publish(tmp_path, heads=HEADS)
    assert config.read_text() == current
    former = re.sub(r",( *#[^\n]*)\n *{ name: \"heads_json[^\n]*", r"\1", current)
    config.write_text(former[: former.index("# For ")] + "version_policy { latest { num_versions: 4 } }\n")
    former = config.read_text()
    assert [output.name for output in read(tmp_path, TOKENIZER_MODEL).output] == names[:-1]
    for _ in range(2):
        publish(tmp_path)
        found = read(tmp_path, TOKENIZER_MODEL)
        assert [output.name for output in found.output] == names
        assert (found.output[-1].data_type, list(found.output[-1].dims)) == (model_config_pb2.TYPE_UINT8, [-1])
        assert found.parameters["optional_outputs"].string_value == HEADS_JSON
        assert not found.batch_output
        assert config.read_text().startswith(former)


def test_a_config_that_cannot_be_changed_is_an_error_that_says_how(tmp_path: Path) -> None:
    publish(tmp_path)
    config = tmp_path / ONNX_MODEL / CONFIG_FILE
    config.write_text(config.read_text().replace("[ -1, 1 ]", "[-1,1]"))
    before = tree(tmp_path)
    with pytest.raises(PublishError, match=r"set the dims of the output \"logits\" to \[ -1, 2 \]"):
        publish(tmp_path, b"new", labels=2)
    assert tree(tmp_path) == before


def test_a_failure_puts_the_changed_config_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, labels=1)
    before = tree(tmp_path)
    monkeypatch.setattr("export.publish.sync", lambda path: 1 / 0 if path.name == ONNX_MODEL else None)
    with pytest.raises(ZeroDivisionError):
        publish(tmp_path, b"new", labels=2, heads=HEADS)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interruption_leaves_the_former_version_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    publish(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(error), staged(tmp_path, MODELS, CLICK) as (_, folders):
        (folders[ONNX_MODEL] / MODEL_FILE).write_bytes(b"half")
        raise error
    assert tree(tmp_path) == before
    assert not list(tmp_path.rglob(STAGING))


def test_a_failure_in_a_new_repository_leaves_none(tmp_path: Path) -> None:
    repository = tmp_path / "some" / "new" / "repository"
    with pytest.raises(ZeroDivisionError), staged(repository, MODELS, CLICK):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_takes_back_the_config_of_a_model_that_is_new(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "clickbert_onnx_int8").mkdir()
    (tmp_path / "clickbert_onnx_int8" / "notes.txt").write_text("the user's")
    before = tree(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        staged(tmp_path, [*MODELS, "clickbert_onnx_int8", "clickbert_trt_fp16"], CLICK),
    ):
        raise ZeroDivisionError
    assert tree(tmp_path) == before
    assert not (tmp_path / "clickbert_trt_fp16").exists()
    assert [path.name for path in (tmp_path / "clickbert_onnx_int8").iterdir()] == ["notes.txt"]


def test_a_config_that_cannot_be_changed_is_refused_before_the_work(tmp_path: Path) -> None:
    publish(tmp_path)
    config = tmp_path / ONNX_MODEL / CONFIG_FILE
    config.write_text(config.read_text().replace("[ -1, 1 ]", "[-1,1]"))
    with pytest.raises(PublishError, match="set the dims"), staged(tmp_path, MODELS, {LOGITS: 2}):
        pytest.fail("the block ran")


def test_an_interruption_between_the_two_renames_takes_the_first_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path)
    before = tree(tmp_path)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == tmp_path / ONNX_MODEL / STAGING:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, b"new")
    assert tree(tmp_path) == before


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    publish(tmp_path)
    code = (
        "import os, signal; from pathlib import Path; from export.publish import staged\n"
        f"with staged(Path({str(tmp_path)!r}), {MODELS!r}, {CLICK!r}) as (number, folders):\n"
        "    (folders['clickbert_onnx'] / 'rubbish').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0
    assert publish(tmp_path, b"new") == 2
    assert "clickbert_onnx/2/rubbish" not in tree(tmp_path)
    assert not list(tmp_path.rglob(STAGING))


def test_two_exports_at_once_are_refused(tmp_path: Path) -> None:
    with staged(tmp_path, MODELS, CLICK) as (_, folders):
        before = tree(tmp_path)
        with (
            pytest.raises(LockError, match=r"another export is at work in .*end it \(Ctrl-C: it publishes nothing\)"),
            staged(tmp_path, [*MODELS, "clickbert_onnx_int8"], CLICK),
        ):
            pytest.fail("the block ran")
        assert tree(tmp_path) == before
        for folder in folders.values():  # and the refused one did not touch the first one's folders
            (folder / MODEL_FILE).write_bytes(b"x")
    assert (tmp_path / ONNX_MODEL / "1" / MODEL_FILE).read_bytes() == b"x"
    assert publish(tmp_path) == 2


def test_an_export_begins_and_fails_without_changing_what_a_load_has_renamed(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path)
    with pytest.raises(ZeroDivisionError), staged(tmp_path, MODELS, CLICK):
        with locked(tmp_path):  # as a rollback does
            withdraw(tmp_path / ONNX_MODEL / "2")
        raise ZeroDivisionError
    assert publish(tmp_path) == 3, "the number of what was withdrawn is not used again"
    assert not list(tmp_path.rglob(STAGING))


def test_the_end_of_an_export_waits_for_a_load(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from export.publish import staged\n"
        f"with staged(Path({str(tmp_path)!r}), {MODELS!r}, {CLICK!r}) as (number, folders):\n"
        "    (folders['clickbert_onnx'] / 'model.onnx').write_bytes(b'x'); print('written', flush=True); input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as export:
        assert export.stdout and export.stdin and export.stdout.readline() == "written\n"
        with locked(tmp_path):
            export.stdin.write("\n")
            export.stdin.flush()
            eventually(lambda: f" {export.pid} " in waiting_for_locks())
            assert not (tmp_path / ONNX_MODEL / "1").exists()
        assert export.wait() == 0
    assert (tmp_path / ONNX_MODEL / "1").is_dir()


def waiting_for_locks() -> str:
    """What the kernel says of who waits for a lock, with the process's id."""
    return "".join(line for line in Path("/proc/locks").read_text().splitlines(True) if "-> FLOCK" in line)


def test_a_file_size_limit_stands_for_a_full_disk(tmp_path: Path) -> None:
    publish(tmp_path)
    before = tree(tmp_path)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "from pathlib import Path; from export.publish import PublishError, staged\n"
        "try:\n"
        f"    with staged(Path({str(tmp_path)!r}), {MODELS!r}, {CLICK!r}) as (number, folders):\n"
        "        (folders['clickbert_onnx'] / 'model.onnx').write_bytes(bytes(1 << 20))\n"
        "except PublishError as error: sys.exit(str(error))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert "nothing was published" in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_former_version(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        publish(tmp_path)
        before = tree(tmp_path)
        with pytest.raises(PublishError, match=r"No space left on device.*nothing was published"):
            publish(tmp_path, bytes(3 << 20))
        assert tree(tmp_path) == before
        assert publish(tmp_path, b"smaller") == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)
