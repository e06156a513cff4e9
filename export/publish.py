"""Puts versions into a Triton model repository: whole or not at all.

Everything is written to a staging folder beside the versions (Triton ignores names that are not numbers), flushed to
disk, and only then renamed. Loads go on meanwhile: the repository is locked at the start and for the renames alone; for
the minutes in between an export keeps its staging folders, and with them other exports out. A full disk, an error or
Ctrl-C at any moment leaves the repository as it was. (A kill between two renames leaves a tokenizer without its model,
which no client asks for.) One run publishes all its models under one new number, higher than any in the repository, the
tokenizer first: a client that meets a model's version always finds the tokenizer of the same number.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.configs import ConfigError, change_config
from release import versions
from release.files import STAGING, sync, write_whole
from release.lock import held, locked
from release.names import CONFIG_FILE, VARIANTS

# The configs in git. A repository elsewhere gets copies of them with its first version.
TEMPLATES = Path(__file__).resolve().parent.parent / "model_repository"
WARMUP = "warmup"
BESIDE = (WARMUP, VARIANTS)  # folders that belong to a config


class PublishError(RuntimeError):
    """Nothing was published; says why."""


@contextmanager
def staged(
    repository: Path, models: list[str], widths: Mapping[str, int], *, once: bool = False
) -> Iterator[tuple[int, dict[str, Path]]]:
    """Gives each model an empty folder to write a version into, and publishes them all when the block ends well.

    Args:
        repository: the model repository; made if it is not there.
        models: names of folders with a config, there or in git, in the order of publication.
        widths: the click models' outputs, each with how many numbers a pair has; written into the configs.
        once: the click models' graphs compute a user text once; their inputs are written into the configs.

    Yields:
        The new version's number, and the folder to fill for each model.

    Raises:
        LockError: the repository cannot be used, or another export or a load is at work in it.
        PublishError: a config is not usable, or writing failed. Whatever is raised, the repository is as it was.
    """
    new_folders = [folder for folder in (repository, *repository.parents) if not folder.exists()]
    new_paths: list[Path] = []  # in the models' folders
    folders: dict[str, Path] = {}
    try:
        with ExitStack() as own:
            with locked(repository):
                number = versions.next_number(repository)
                try:
                    for model in models:
                        take_folder(repository / model, own, new_paths)
                        folders[model] = repository / model / STAGING
                        change_configs(repository / model, widths, once=once)  # refused now, not at the end
                except BaseException:
                    remove(list(folders.values()), new_paths, new_folders)
                    raise
            try:
                yield number, folders
                for folder in folders.values():
                    flush(folder)
                with locked(repository, wait=True):
                    publish(folders, number, widths, once=once)
                    own.close()
            except BaseException:
                with locked(repository, wait=True):
                    remove(list(folders.values()), new_paths, new_folders)
                raise
    except OSError as exc:
        if exc.filename and repository not in Path(exc.filename).parents:
            raise
        raise PublishError(
            f"writing into {repository} failed: {exc.strerror} ({exc.filename or 'no file named'}); nothing "
            "was published, the former versions are untouched"
        ) from exc


def take_folder(model: Path, own: ExitStack, new_paths: list[Path]) -> None:
    """Makes a model's staging folder, which is this export's for as long as `own` is open; and its config.

    Args:
        new_paths: gets what lies in the repository now and did not before.

    Raises:
        LockError: another export is at work with it.
        PublishError: there is no config.
    """
    folder = model / STAGING
    why = (
        f"another export is at work in {model.parent}; wait for it, or end it (Ctrl-C: it publishes nothing), then run "
        "again"
    )
    if folder.exists():
        with held(folder, why):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    warmup = (model / WARMUP / file.name for file in (TEMPLATES / model.name / WARMUP).glob("*"))
    parts = (model, *(model / name for name in BESIDE), model / CONFIG_FILE, *warmup)
    new_paths += [path for path in parts if not path.exists()]
    copy_config(model.name, model)
    folder.mkdir()
    own.enter_context(held(folder, why))


def publish(folders: Mapping[str, Path], number: int, widths: Mapping[str, int], *, once: bool) -> None:
    """Writes the configs, and gives the staging folders their number, in a repository that is locked.

    Raises:
        PublishError, OSError: it cannot. Whatever is raised, the repository is as it was, without what was staged.
    """
    published: dict[Path, Path] = {}  # to where it was staged
    configs: dict[Path, str] = {}  # as they were
    try:
        for folder in folders.values():
            for config, changed in change_configs(folder.parent, widths, once=once).items():
                configs[config] = config.read_text(encoding="utf-8")
                if changed != configs[config]:
                    write_whole(config, changed.encode())
            target = folder.with_name(str(number))
            if target.exists():
                raise PublishError(f"{target} appeared while version {number} was made; find out from where")
            published[target] = folder
            folder.rename(target)
            sync(folder.parent)
    except BaseException:
        for target, folder in published.items():
            with suppress(OSError):  # it is not there if its own rename failed
                target.rename(folder)  # a server must never see a numbered folder half deleted
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        for config, text in configs.items():  # last: a full disk has room again
            if config.read_text(encoding="utf-8") != text:
                write_whole(config, text.encode())
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
    template = TEMPLATES / model
    if (folder / CONFIG_FILE).exists():
        for file in (template / WARMUP).glob("*"):  # those that a former release lacks
            if (folder / WARMUP).is_dir() and not (folder / WARMUP / file.name).exists():
                write_whole(folder / WARMUP / file.name, file.read_bytes())
        return
    if not (template / CONFIG_FILE).is_file():
        raise PublishError(f"{model} has no {CONFIG_FILE}, neither in {folder} nor in {template}; write one")
    folder.mkdir(exist_ok=True)
    for name in BESIDE:
        if (template / name).is_dir() and not (folder / name).exists():
            shutil.copytree(template / name, folder / name)
    write_whole(folder / CONFIG_FILE, (template / CONFIG_FILE).read_bytes())


def remove(staging: list[Path], new_paths: list[Path], new_folders: list[Path]) -> None:
    """Takes back what a failed export made: paths with all that is in them, then folders that are empty now."""
    for path in (*staging, *new_paths):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in new_folders:
        with suppress(OSError):
            folder.rmdir()


def change_configs(folder: Path, widths: Mapping[str, int], *, once: bool) -> dict[Path, str]:
    """The text of a model's config and of its variants (`python -m serving --config`) for the new version.

    Raises:
        PublishError: one is not readable, or not as it is in git.
    """
    configs = (folder / CONFIG_FILE, *sorted(folder.glob(f"{VARIANTS}/*.pbtxt")))
    try:
        return {file: change_config(file, folder.name, widths, once=once) for file in configs}
    except ConfigError as exc:
        raise PublishError(str(exc)) from exc


def flush(folder: Path) -> None:
    """Waits until a folder's files and their names are on the disk. A full disk shows here, if not before."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)
