"""Puts versions into a Triton model repository: whole or not at all.

Everything is written to a staging folder beside the versions (Triton ignores names that are not numbers), flushed to
disk, and only then renamed. A full disk, an error or Ctrl-C at any moment leaves the repository as it was. (A kill
between two renames leaves a tokenizer without its model, which no client asks for.) One run publishes all its models
under one new number, higher than any in the repository, the tokenizer first: a client that meets a model's version
always finds the tokenizer of the same number.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from release import versions
from release.files import STAGING, sync, write_whole
from release.lock import locked
from release.names import CONFIG_FILE, HEADS_JSON, LOGITS, REQUEST_INPUTS, TOKENIZER_MODEL, VARIANTS

# The configs in git. A repository elsewhere gets copies of them with its first version.
TEMPLATES = Path(__file__).resolve().parent.parent / "model_repository"
BESIDE = ("warmup", VARIANTS)  # folders that belong to a config
# What an export adds to a config lies between these lines, at its end.
BEGIN = "# What follows is written by `python -m export`: outputs of the newest version. The next export replaces it.\n"
END = "# Here ends what `python -m export` writes.\n"
BLOCK = re.compile(rf"\n{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


class PublishError(RuntimeError):
    """Nothing was published; says why."""


@contextmanager
def staged(repository: Path, models: list[str], widths: Mapping[str, int]) -> Iterator[tuple[int, dict[str, Path]]]:
    """Gives each model an empty folder to write a version into, and publishes them all when the block ends well.

    Args:
        repository: the model repository; made if it is not there.
        models: names of folders with a config, there or in git, in the order of publication.
        widths: the click models' outputs, each with how many numbers a pair has; written into the configs.

    Yields:
        The new version's number, and the folder to fill for each model.

    Raises:
        LockError: the repository cannot be used, or another export is publishing.
        PublishError: a config is not usable, or writing failed. Whatever is raised, the repository is as it was.
    """
    new_folders = [folder for folder in (repository, *repository.parents) if not folder.exists()]
    with locked(repository):
        folders = {model: repository / model / STAGING for model in models}
        published: dict[Path, Path] = {}  # to where it was staged
        configs: dict[Path, str] = {}  # as they were
        new_paths: list[Path] = []  # in the models' folders
        number = versions.next_number(repository)
        try:
            for model, folder in folders.items():
                own = repository / model
                parts = (own, *(own / name for name in BESIDE), own / CONFIG_FILE)
                new_paths += [path for path in parts if not path.exists()]
                copy_config(model, own)
                change_configs(own, widths)  # refused now, not at the end
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
                folder.mkdir()
            yield number, folders
            for folder in folders.values():
                flush(folder)
            for model, folder in folders.items():
                for config, changed in change_configs(repository / model, widths).items():
                    configs[config] = config.read_text(encoding="utf-8")
                    if changed != configs[config]:
                        write_whole(config, changed.encode())
                target = repository / model / str(number)
                if target.exists():
                    raise PublishError(f"{target} appeared while version {number} was made; find out from where")
                published[target] = folder
                folder.rename(target)
                sync(repository / model)
        except BaseException as exc:
            for target, folder in published.items():
                with suppress(OSError):  # it is not there if its own rename failed
                    target.rename(folder)  # a server must never see a numbered folder half deleted
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
            for config, text in configs.items():  # last: a full disk has room again
                if config.read_text(encoding="utf-8") != text:
                    write_whole(config, text.encode())
            remove(new_paths, new_folders)
            elsewhere = isinstance(exc, OSError) and exc.filename and repository not in Path(exc.filename).parents
            if isinstance(exc, OSError) and not elsewhere:
                raise PublishError(
                    f"writing into {repository} failed: {exc.strerror} ({exc.filename or 'no file named'}); nothing "
                    "was published, the former versions are untouched"
                ) from exc
            raise


def find_too_old(repository: Path, tokenizer: str) -> list[str]:
    """Models that clients cannot use, because the server no longer keeps their tokenizer.

    That happens to an engine that several exports leave out.
    """
    config = text_format.Parse(
        (repository / tokenizer / CONFIG_FILE).read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )
    models = [path.parent.name for path in repository.glob(f"*/{CONFIG_FILE}")]
    return versions.left_behind(repository, models, tokenizer, config.version_policy.latest.num_versions)


def copy_config(model: str, folder: Path) -> None:
    """Gives a model that has no config the one from git, with its variants and the files that it names.

    Raises:
        PublishError: there is none.
    """
    if (folder / CONFIG_FILE).exists():
        return
    template = TEMPLATES / model
    if not (template / CONFIG_FILE).is_file():
        raise PublishError(f"{model} has no {CONFIG_FILE}, neither in {folder} nor in {template}; write one")
    folder.mkdir(exist_ok=True)
    for name in BESIDE:
        if (template / name).is_dir() and not (folder / name).exists():
            shutil.copytree(template / name, folder / name)
    write_whole(folder / CONFIG_FILE, (template / CONFIG_FILE).read_bytes())


def remove(new_paths: list[Path], new_folders: list[Path]) -> None:
    """Takes back what a failed export made: paths with all that is in them, then folders that are empty now."""
    for path in new_paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in new_folders:
        with suppress(OSError):
            folder.rmdir()


def change_configs(folder: Path, widths: Mapping[str, int]) -> dict[Path, str]:
    """The text of a model's config and of its variants (`python -m serving --config`), with the new version's outputs.

    Raises:
        PublishError: one is not readable, or not as it is in git.
    """
    configs = (folder / CONFIG_FILE, *sorted(folder.glob(f"{VARIANTS}/*.pbtxt")))
    return {file: change_outputs(file.read_text(encoding="utf-8"), widths, folder.name, file) for file in configs}


def change_outputs(text: str, widths: Mapping[str, int], model: str, config: Path) -> str:
    """The text of a model's config, with the outputs that the new version has.

    Of what the user may have written only the number of logits changes. The outputs that the config lacks are in a
    block at its end: the further heads, and what a tokenizer's config of a former release lacks.

    Raises:
        PublishError: the config is not readable, or not as it is in git.
    """
    text = BLOCK.sub("", text)
    outputs = read_outputs(text, config)
    if model == TOKENIZER_MODEL:
        further = {name: "TYPE_UINT8 dims: [ -1 ]" for name in (HEADS_JSON,) if name not in outputs}
        return text + block(further, "") if further else text
    if LOGITS not in outputs:
        return text
    labels = widths[LOGITS]
    if outputs[LOGITS] != labels:
        text = re.sub(rf'(name: "{LOGITS}"[^}}]*dims: \[ -1, )\d+( \])', rf"\g<1>{labels}\g<2>", text)
        if read_outputs(text, config)[LOGITS] != labels:
            raise PublishError(
                f'{config}: set the dims of the output "{LOGITS}" to [ -1, {labels} ], then export again'
            )
    further = {name: f"TYPE_FP32 dims: [ -1, {width} ]" for name, width in widths.items() if name != LOGITS}
    if twice := further.keys() & outputs.keys():
        raise PublishError(f"{config}: remove the output {', '.join(sorted(twice))}, which the export writes itself")
    return text + block(further, REQUEST_INPUTS[-1]) if further else text


def block(outputs: Mapping[str, str], source: str) -> str:
    """The part of a config that adds outputs, given by name with type and dims; as many rows as `source` has elements.

    An output that a former version lacks is left out of its answers by the packed_cpu backend (`optional_outputs`).
    """
    entries = ",\n".join(f'  {{ name: "{name}" data_type: {kind} }}' for name, kind in outputs.items())
    scattered = ",\n".join(
        f'  {{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "{name}" source_input: "{source}" }}'
        for name in outputs
        if source
    )
    optional = f'parameters {{ key: "optional_outputs" value {{ string_value: "{" ".join(outputs)}" }} }}\n'
    batch = f"batch_output [\n{scattered}\n]\n" if scattered else ""
    return f"\n{BEGIN}output [\n{entries}\n]\n{batch}{optional}{END}"


def read_outputs(text: str, config: Path) -> dict[str, int]:
    """The outputs of a config's text, each with its last dimension.

    Raises:
        PublishError: the text is no config.
    """
    try:
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise PublishError(
            f"{config} is not a valid model configuration: {exc}; correct it, then export again"
        ) from exc
    return {output.name: int(output.dims[-1]) for output in parsed.output}


def flush(folder: Path) -> None:
    """Waits until a folder's files and their names are on the disk. A full disk shows here, if not before."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)
