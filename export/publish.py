"""Puts versions into a Triton model repository: whole or not at all.

Everything is written to a staging folder beside the versions (Triton ignores names that are not numbers), flushed to
disk, and only then renamed. A full disk, an error or Ctrl-C at any moment leaves the former version as it was, and no
half version. (A kill between the two renames leaves a tokenizer without its model, which nobody asks for.) One run
publishes all its models under one new number, higher than any in the repository, the tokenizer first: a client that
meets a model's version always finds the tokenizer of the same number.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from release import versions
from release.files import STAGING, sync, write_whole
from release.names import CONFIG_FILE, LOGITS

# The configs that are in git. A repository elsewhere gets copies of them with its first version.
TEMPLATES = Path(__file__).resolve().parent.parent / "model_repository"


class PublishError(RuntimeError):
    """Nothing was published; says why."""


@contextmanager
def staged(repository: Path, models: list[str], labels: int) -> Iterator[tuple[int, dict[str, Path]]]:
    """Gives one empty folder a model to write a version into, and publishes them all when the block ends well.

    Args:
        repository: the model repository; made if it is not there.
        models: names of folders with a config in git, in the order of publication.
        labels: how many logits a pair has; written into the configs.

    Yields:
        The new version's number, and the folder to fill for each model.

    Raises:
        PublishError: another export is publishing, a config is not usable, or writing failed. The folders are gone.
    """
    with locked(repository):
        folders = {model: repository / model / STAGING for model in models}
        published: dict[Path, Path] = {}  # to where it was staged
        configs: dict[Path, str] = {}  # changed ones, as they were
        number = versions.next_number(repository)
        try:
            for model, folder in folders.items():
                copy_config(model, repository / model)
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
                folder.mkdir()
            yield number, folders
            for folder in folders.values():
                flush(folder)
            for model, folder in folders.items():
                config = repository / model / CONFIG_FILE
                configs[config] = config.read_text(encoding="utf-8")
                set_label_count(config, labels)
                target = repository / model / str(number)
                if target.exists():
                    raise PublishError(f"{target} appeared while version {number} was made; find out from where")
                published[target] = folder
                folder.rename(target)
                sync(repository / model)
        except BaseException as exc:
            for target, folder in published.items():
                with suppress(OSError):  # not there, if its own rename is what failed
                    target.rename(folder)  # a numbered folder must never be seen half deleted
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
            for config, text in configs.items():  # after that, since a full disk has room again
                if config.read_text(encoding="utf-8") != text:
                    write_whole(config, text.encode())
            elsewhere = isinstance(exc, OSError) and exc.filename and repository not in Path(exc.filename).parents
            if isinstance(exc, OSError) and not elsewhere:
                raise PublishError(
                    f"writing into {repository} failed: {exc.strerror} ({exc.filename or 'no file named'}); nothing "
                    "was published, the former versions are untouched"
                ) from exc
            raise


def left_behind(repository: Path, tokenizer: str) -> list[str]:
    """The models whose newest version is older than every tokenizer that the server keeps: no client can ask them.

    That happens to an engine that is not exported along with the others for long.
    """
    config = text_format.Parse(
        (repository / tokenizer / CONFIG_FILE).read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )
    models = [path.parent.name for path in repository.glob(f"*/{CONFIG_FILE}")]
    return versions.left_behind(repository, models, tokenizer, config.version_policy.latest.num_versions)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keeps other exports out of the repository; the system lets go of it even when this process is killed.

    Raises:
        PublishError: another export is in it, or it cannot be made.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY)
    except OSError as exc:
        raise PublishError(f"{repository} cannot be used as a model repository: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise PublishError(f"another export is publishing into {repository}; wait for it, then run again") from exc
        yield
    finally:
        os.close(descriptor)


def copy_config(model: str, folder: Path) -> None:
    """Puts the model's config from git (and the files it names) into `folder`, unless it has one."""
    if (folder / CONFIG_FILE).exists():
        return
    folder.mkdir(exist_ok=True)
    template = TEMPLATES / model
    if (template / "warmup").is_dir():
        shutil.copytree(template / "warmup", folder / "warmup", dirs_exist_ok=True)
    write_whole(folder / CONFIG_FILE, (template / CONFIG_FILE).read_bytes())


def set_label_count(config: Path, labels: int) -> None:
    """Makes the config's logits as wide as the model's. Comments stay: only the number is exchanged.

    Raises:
        PublishError: the config is not readable, or not as it is in git.
    """
    text = config.read_text(encoding="utf-8")
    if label_count(text, config) in (labels, None):
        return
    changed = re.sub(rf'(name: "{LOGITS}"[^}}]*dims: \[ -1, )\d+( \])', rf"\g<1>{labels}\g<2>", text)
    if label_count(changed, config) != labels:
        raise PublishError(f'{config}: set the dims of the output "{LOGITS}" to [ -1, {labels} ], then export again')
    write_whole(config, changed.encode())


def label_count(text: str, config: Path) -> int | None:
    """How many logits a pair has by a config's text; None where the model has no logits."""
    try:
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise PublishError(f"{config} is not a valid model configuration: {exc}; mend it, then export again") from exc
    return next((int(output.dims[-1]) for output in parsed.output if output.name == LOGITS), None)


def flush(folder: Path) -> None:
    """Makes sure that a folder's files, and their names, are on the disk. That is when a full disk shows itself."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)
