"""Folders that cannot be computed in process: each is named, with what to do, before anything is scored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clickbert import InvalidInputError
from clickbert.in_process import async_ranker, names, ranker
from clickbert.in_process.graph import _has_vnni
from release import hardware
from release import names as released
from release.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest


@pytest.fixture
def repository(published_engines: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published_engines, tmp_path / "repository")


def refusal(path: object) -> str:
    """What a path is refused with, the same by both rankers."""
    found = []
    for make in (ranker, async_ranker):
        with pytest.raises(InvalidInputError) as error:
            make(path)
        found.append(str(error.value))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("path", ["clickbert_onnx/1/model.onnx", "clickbert_tokenizer/1/model.onnx"])
def test_a_flipped_bit_is_found(repository: Path, path: str) -> None:
    content = bytearray((repository / path).read_bytes())
    content[len(content) // 2] ^= 1
    (repository / path).write_bytes(content)
    assert f"{repository / path} is damaged" in refusal(repository / "clickbert_onnx/1")


MISSING = {
    "config.pbtxt": "config.pbtxt cannot be read",
    "1/manifest.json": "copied in part",
    "1/manifest.json.sha256": "copied in part",
    "1/model.onnx": "model.onnx cannot be read",
}


@pytest.mark.parametrize(("path", "said"), MISSING.items())
def test_a_missing_file_is_named(repository: Path, path: str, said: str) -> None:
    (repository / "clickbert_onnx_int8" / path).unlink()
    assert said in refusal(repository / "clickbert_onnx_int8/1")


def test_a_changed_manifest_is_found(repository: Path) -> None:
    manifest = repository / "clickbert_onnx/1" / MANIFEST_FILE
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("click", "clack"), encoding="utf-8")
    assert "manifest.json is damaged" in refusal(manifest.parent)


def test_the_tokenizer_must_be_there_and_be_its_own(repository: Path) -> None:
    tokenizer = repository / "clickbert_tokenizer" / "1"
    manifest = read_manifest(tokenizer)
    write_manifest(tokenizer, Manifest(**(vars(manifest) | {"tokenizer_sha256": "0" * 64})))
    assert "is not the tokenizer of" in refusal(repository / "clickbert_onnx/1")
    shutil.rmtree(tokenizer)
    assert f"{tokenizer} is missing" in refusal(repository / "clickbert_onnx/1")


def test_a_tensorrt_version_is_refused_with_what_cpus_compute(repository: Path) -> None:
    said = refusal(repository / "clickbert_trt_fp16/1")
    assert "is a TensorRT version" in said
    assert f"CPUs compute: {repository}/clickbert_onnx/1 or {repository}/clickbert_onnx_int8/1" in said


def test_the_tokenizers_folder_is_no_click_model(repository: Path) -> None:
    assert "is no click model" in refusal(repository / "clickbert_tokenizer/1")


CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "no config": (lambda text: text + "}", "not a valid model configuration"),
    "not UTF-8": (lambda text: text + "\udcff", "not a valid model configuration"),
    "deep": (lambda text: text + "surprise { " * 100_000, "not a valid model configuration"),
    "a limit": (lambda text: text.replace('string_value: "32"', 'string_value: "many"'), "max_elements.lengths"),
    "a limit of thousands of digits": (lambda text: text.replace('"32"', f'"{"9" * 9999}"'), "max_elements.lengths"),
    "pieces": (lambda text: text.replace('string_value: "256"', 'string_value: "-1"'), "chunk_elements"),
    "counts": (lambda text: text.replace("BATCH_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT"), "batch_input"),
    "another version's": (lambda text: text.replace("token_type_ids", "user_lengths"), "inputs of another version"),
}


@pytest.mark.parametrize(("change", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_not_the_models(repository: Path, change: Callable[[str], str], said: str) -> None:
    config = repository / "clickbert_onnx/config.pbtxt"
    config.write_text(change(config.read_text(encoding="utf-8")), encoding="utf-8", errors="surrogateescape")
    assert said in refusal(repository / "clickbert_onnx/1")


def test_a_field_of_a_newer_triton_does_no_harm(repository: Path) -> None:
    with (repository / "clickbert_onnx/config.pbtxt").open("a", encoding="utf-8") as file:
        file.write('surprise { what: "news" }\n')
    with ranker(repository / "clickbert_onnx/1") as here:
        assert len(here.rank("w1", ["w2", "w3"])) == 2


def test_folders_that_are_something_else(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is neither a published version nor a checkpoint" in refusal(tmp_path / "empty")
    for place in (repository, repository / "clickbert_onnx"):
        assert "there is " in refusal(place)
    assert "is no folder" in refusal(tmp_path / "missing")
    assert "is no folder" in refusal(repository / "clickbert_onnx/config.pbtxt")
    assert "is no folder" in refusal("a\0b")
    assert "path is of type NoneType" in refusal(None)
    withdrawn = (repository / "clickbert_onnx/1").rename(repository / "clickbert_onnx/withdrawn.1")
    assert "not named by a version's number" in refusal(withdrawn)


def test_hostile_manifests(repository: Path) -> None:
    folder = repository / "clickbert_onnx/1"
    for content in ("[]", "[" * 100_000, '{"files": null}', '{"files": {"model.onnx": 1}}', '"model.onnx"', "NaN", ""):
        (folder / MANIFEST_FILE).write_text(content, encoding="utf-8")
        sums = subprocess.run(["sha256sum", MANIFEST_FILE], cwd=folder, capture_output=True, check=True).stdout
        (folder / released.MANIFEST_SUM_FILE).write_bytes(sums)
        assert str(folder) in refusal(folder)


def test_a_graph_that_fits_its_hash_but_is_none(repository: Path) -> None:
    tokenizer = repository / "clickbert_tokenizer/1"
    (tokenizer / "model.onnx").write_bytes(b"no graph")
    write_manifest(tokenizer, read_manifest(tokenizer))
    assert "cannot be loaded" in refusal(repository / "clickbert_onnx/1")


@pytest.mark.parametrize(
    ("library", "fixture", "path", "advice"),
    [
        ("onnxruntime", "published_engines", "clickbert_onnx/1", "pip install 'clickbert[in-process]'"),
        ("torch", "published_checkpoint", ".", "pip install torch transformers"),
    ],
)
def test_what_is_not_installed_is_named(
    request: pytest.FixtureRequest, library: str, fixture: str, path: str, advice: str
) -> None:
    script = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from clickbert.in_process import ranker\n"
        f"try: ranker({str(request.getfixturevalue(fixture) / path)!r})\n"
        "except ImportError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert advice in done.stdout


def test_importing_it_imports_no_engine() -> None:
    script = "import sys, clickbert.in_process; print(*{'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_the_names_are_those_of_a_release(published_engines: Path) -> None:
    shared = ("CONFIG_FILE", "MANIFEST_FILE", "MANIFEST_SUM_FILE", "KEPT", "KEPT_EARLIER", "KEPT_PREFIXES")
    for name in (*shared, "USER_TOKENS", "TOKENIZER_SHA256"):
        assert getattr(names, name) == getattr(released, name)
    assert released.MODEL_FILE == names.GRAPH_FILE
    assert names.USER_PAIRS in released.ONCE_REQUEST_INPUTS
    for model in names.CPU_MODELS:
        folder = published_engines / model / "1"
        manifest = json.loads((folder / names.MANIFEST_FILE).read_text(encoding="utf-8"))
        assert names.GRAPH_FILE in manifest[names.FILES] and names.TOKENIZER_SHA256 in manifest
        assert names.CHUNK_ELEMENTS in (folder.parent / names.CONFIG_FILE).read_text(encoding="utf-8")
    assert _has_vnni() == hardware.has_vnni()
