"""Loads a published version into the running server, without a restart: forward, and back (`python -m serving load`).

Its files are verified first, and the tokenizer is loaded first. Triton loads the new version beside the old one, and
switches when it is ready: nothing in flight is lost. It need not wait for an export or a plan build, unless it is the
build of the wanted version's own plan. Triton takes the newest version that is published. So newer ones
than the wanted one are withdrawn: they get another name, and keep it over restarts until they are asked for by number.
A version that is refused is withdrawn, too: the next start serves what serves now.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToJson
from tritonclient.utils import InferenceServerException

from release import versions
from release.hardware import find_gpus
from release.lock import LockError, held, locked
from release.names import CONFIG_FILE, TOKENIZER_MODEL
from serving.access import admin
from serving.access.security import Security
from serving.addresses import Addresses
from serving.asking import ask_versions, asking, why_failed
from serving.repository.models import check_plan, config_file, read_backend, read_config
from serving.repository.verification import loaded_versions, verify_version
from serving.triton import ServingError

# A server that does not answer has refused nothing.
NO_ANSWER = {f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")}
NOT_READ = "failed to poll"  # Triton's word for a folder that is not in its repository, or has no valid config.pbtxt
LONGEST = 600.0  # seconds that a load may take: a large model is warmed up before it serves


def load(
    repository: Path, addresses: Addresses, security: Security | None, model: str, number: int | None = None
) -> str:
    """Has the server load a version of a model; returns its number.

    Args:
        number: which one; None for the newest that is published.

    Raises:
        ServingError: there is none; it is damaged, or Triton refuses it: the former version serves on; or the server
            cannot be asked.
    """
    if not repository.is_dir():
        raise ServingError(f"{repository} is no folder; give the server's --repository")
    token = admin.find_token(addresses)
    if token is None:
        raise ServingError(
            f"there is no admin token for a server at {addresses.grpc}: does it run, and did this user start it by "
            f"`python -m serving`? Give the same --address and --grpc-port, or set {admin.VARIABLE} for both"
        )
    headers = admin.headers(token)
    try:
        with locked(repository), asking(addresses, security) as client, ExitStack() as own:
            # First: where the server cannot be asked, nothing is renamed.
            ready = ready_versions(client, headers)
            serving_now = ready.get(model, [])
            version, was_withdrawn = find(repository, model, number)
            keep(version, own, was_withdrawn=was_withdrawn)
            try:
                check(version)
            except ServingError as exc:
                raise ServingError(refuse(version, str(exc), serving_now)) from exc
            withdrawn = withdraw_newer(version)
            try:
                if (tokenizers := repository / TOKENIZER_MODEL).is_dir():
                    config = tokenizers_config(tokenizers, ready)
                    client.load_model(TOKENIZER_MODEL, headers=headers, config=config, client_timeout=LONGEST)
                if model != TOKENIZER_MODEL:
                    client.load_model(model, headers=headers, client_timeout=LONGEST)
            except InferenceServerException as exc:
                for newer in withdrawn:
                    versions.bring_back(newer.parent, versions.withdrawn_number(newer))
                why = f"Triton did not load it: {why_failed(exc)}"
                if exc.status() in NO_ANSWER or NOT_READ in why:
                    if was_withdrawn:  # it may be what killed the server, which is started again
                        versions.withdraw(version)
                    raise ServingError(f"{model} version {version.name}: {why}") from exc
                raise ServingError(refuse(version, why, serving_now)) from exc
            answering = ready_versions(client, headers).get(model, [])
    except LockError as exc:
        raise ServingError(str(exc)) from exc
    except OSError as exc:
        raise ServingError(
            f"{exc.filename} cannot be renamed ({exc.strerror}), and by that versions are withdrawn and brought back; "
            "run this as the user who publishes"
        ) from exc
    if version.name not in answering:
        raise ServingError(
            f"Triton serves {model} version {', '.join(answering) or 'none'}, and not {version.name}: does the server "
            f"read the repository {shlex.quote(str(repository))}, and does it take the newest version (config.pbtxt, "
            "version_policy)?"
        )
    return version.name


def ready_versions(client: Any, headers: dict[str, str]) -> dict[str, list[str]]:
    """The versions that answer, by model. Raises ServingError."""
    ready: dict[str, list[str]] = {}
    try:
        for each in ask_versions(client, headers):
            if each.is_ready:
                ready.setdefault(each.model, []).append(each.number)
        return ready
    except InferenceServerException as exc:
        hint = ""
        if "restricted" in str(exc):
            hint = f": the admin token is another server's; {admin.VARIABLE} comes first, if it is set"
        raise ServingError(f"the server cannot be asked: {why_failed(exc)}{hint}") from exc


def find(repository: Path, model: str, number: int | None) -> tuple[Path, bool]:
    """The folder of a version, published again if it was withdrawn; and whether it was.

    Raises:
        ServingError: there is no such version, or its tokenizer would not be loaded.
        OSError: it cannot be renamed.
    """
    if model in ("", "..") or model != Path(model).name:  # Triton itself would load ../elsewhere/model
        raise ServingError(f"{model!r} is no model's name; give the name of a folder in {repository}")
    published = versions.published(repository, model)
    version = next((path for path in published if number in (None, int(path.name))), None)
    was_withdrawn = False
    if version is None and number is not None:
        version = versions.bring_back(repository / model, number)
        was_withdrawn = version is not None
    if version is None:
        numbers = [path.name for path in published]
        numbers += [str(versions.withdrawn_number(path)) for path in versions.list_withdrawn(repository / model)]
        wanted = "published version" if number is None else f"version {number}"
        others = f"; it has {', '.join(numbers)}" if numbers else ""
        raise ServingError(f"{repository / model} has no {wanted}{others}. `python -m export` publishes one")
    tokenizers = repository / TOKENIZER_MODEL
    if model != TOKENIZER_MODEL and (tokenizers / version.name).is_dir():
        kept = [path.name for path in loaded_versions(tokenizers)]
        if version.name not in kept:
            if was_withdrawn:
                versions.withdraw(version)
            raise ServingError(
                f"the tokenizer of {model} version {version.name} would not be loaded: of {TOKENIZER_MODEL} the server "
                f"keeps the newest, {', '.join(kept)}. Rename those in between to {versions.WITHDRAWN}N, but not the "
                "newest: its number must not be used again"
            )
    return version, was_withdrawn


def tokenizers_config(tokenizers: Path, ready: dict[str, list[str]]) -> str | None:
    """The config, as JSON, by which no version that answers loses its tokenizer; None if config.pbtxt will do.

    Triton keeps the newest tokenizers. Where many versions were published since a click model was last loaded, its own
    is not among them, and it answers on until its next load: another model may be the one that is loaded now, the load
    may take a while, or fail. The next load by config.pbtxt unloads what is no longer needed.
    """
    kept = {path.name for path in loaded_versions(tokenizers)}
    answering = {number for model, numbers in ready.items() if model != TOKENIZER_MODEL for number in numbers}
    needed = {number for number in answering if (tokenizers / number).is_dir()}
    if needed <= kept:
        return None
    config = read_config(config_file(tokenizers, ""))
    config.version_policy.Clear()
    config.version_policy.specific.versions.extend(sorted(map(int, needed | kept)))
    return str(MessageToJson(config, preserving_proto_field_name=True))


def keep(version: Path, own: ExitStack, *, was_withdrawn: bool) -> None:
    """Keeps plan builds out of a version for as long as `own` is open. Raises LockError: one is at work there."""
    why = f"a plan of {version.parent.name} version {version.name} is being built; wait for it, then load it again"
    try:
        own.enter_context(held(version, why))
    except LockError:
        if was_withdrawn:
            versions.withdraw(version)
        raise


def check(version: Path) -> None:
    """Verifies a version, and a TensorRT plan in it. Raises ServingError."""
    verify_version(version)
    if read_backend(config_file(version.parent, "")) == "tensorrt":
        check_plan(version, find_gpus())


def withdraw_newer(version: Path) -> list[Path]:
    """Withdraws what is newer than a version; where it lies now. Raises OSError."""
    model = version.parent
    withdrawn = []
    for newer in versions.published(model.parent, model.name):
        if int(newer.name) > int(version.name):
            withdrawn.append(versions.withdraw(newer))
            print(f"serving: {model.name} version {newer.name} is withdrawn, as {withdrawn[-1]}", file=sys.stderr)
    return withdrawn


def refuse(version: Path, why: str, serving_now: list[str]) -> str:
    """Withdraws a version that was not loaded, unless it serves; returns what to say."""
    model, number = version.parent.name, version.name
    if number in serving_now:
        return f"{model} version {number} is not loaded: {why}"
    # The first version of a model, too: with it, the server would not start again.
    others = f", {', '.join(serving_now)} serves on" if serving_now else ""
    return f"{model} version {number} is not loaded{others}: {why}. {put_aside(version)}"


def put_aside(version: Path) -> str:
    """Withdraws a version that was refused; returns where it lies, and what to do."""
    where = version
    with suppress(OSError):  # a read-only repository
        where = versions.withdraw(version)
    return how_to_bring_back(version, where)


def how_to_bring_back(version: Path, where: Path) -> str:
    """What to do about a version that lies elsewhere now."""
    return (
        f"It lies in {where}; once it is in order, `python -m serving load {version.parent.name} --version "
        f"{version.name}` brings it back"
    )


def withdraw_refused(repository: Path, loaded: dict[str, list[str]], variant: str) -> None:
    """Withdraws what was published while a server ran and is damaged, so that it starts anew; says so on stderr.

    Args:
        loaded: the models that it serves, and the numbers of the versions that it had loaded at its last start. They
            stay: where they are damaged themselves, there is nothing to serve instead.
        variant: the name of the configs that models are served by, where they have one of that name.
    """
    for model, numbers in loaded.items():
        if not (repository / model / CONFIG_FILE).is_file():  # it was taken away
            continue
        while found := find_refused(repository / model, numbers, variant):
            version, why = found
            print(f"serving: {why}. {put_aside(version)}", file=sys.stderr, flush=True)
            if version.exists():
                break


def withdraw_latest(
    repository: Path, former: dict[str, list[str]], loaded: dict[str, list[str]], why: str
) -> Path | None:
    """Withdraws the click model's version that came last, of those that a server had not loaded before; says so.

    Their files are whole, but Triton ended when it was to load them, so one of them seems to be the reason. They go one
    at a time, the last one first, because `load` may have loaded others since, which served.

    Args:
        why: what happened.

    Returns:
        Where it lies now; None if there was none.

    Raises:
        ServingError: it cannot be renamed.
    """
    new = [
        repository / model / number
        for model, numbers in loaded.items()
        for number in numbers
        if model != TOKENIZER_MODEL and number not in former.get(model, [])
    ]
    if not new:
        return None
    latest = max(new, key=lambda version: version.stat().st_ctime)
    try:
        where = versions.withdraw(latest)
    except OSError as exc:
        raise ServingError(f"{why}; {latest}, which came since, cannot be renamed: {exc.strerror}") from exc
    about = f"{latest.parent.name} version {latest.name} is the last that came since the server ran"
    print(f"serving: {why}. {about}. {how_to_bring_back(latest, where)}", file=sys.stderr, flush=True)
    return where


def bring_back(withdrawn: list[Path]) -> None:
    """Publishes versions again by which a server would not start, and without which it did not either; says so."""
    for where in withdrawn:
        number = versions.withdrawn_number(where)
        with suppress(OSError):
            if versions.bring_back(where.parent, number):
                print(f"serving: {where.parent.name} version {number} was not the reason: it is back", file=sys.stderr)


def find_refused(model: Path, numbers: list[str], variant: str) -> tuple[Path, str] | None:
    """A version of a model that Triton would load, and why it is refused; not of these numbers, nor the last one."""
    if len(versions.published(model.parent, model.name)) > 1:
        for version in loaded_versions(model, variant):
            try:
                if version.name not in numbers:
                    check(version)
            except ServingError as exc:
                return version, str(exc)
    return None
