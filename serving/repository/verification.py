"""Verifies what Triton is about to load: each version's files against its manifest, and its tokenizer's.

Triton itself would serve a flipped bit in the weights, and rank by it. Which versions it loads of a model, config.pbtxt
says (`version_policy`): of the tokenizer some, of a click model the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from release.manifest import Manifest, ManifestError, verify
from release.names import CONFIG_FILE, TOKENIZER_MODEL
from release.versions import published
from serving.repository.models import config_file, read_config
from serving.triton import ServingError


def verify_models(repository: Path, models: Iterable[str], variant: str = "") -> None:
    """Verifies every version that Triton would load of these models.

    Args:
        variant: the name of the configs that models are served by, where they have one of that name.

    Raises:
        ServingError: some are damaged; names the file of each.
    """
    faults = []
    for model in models:
        for version in loaded_versions(repository / model, variant):
            try:
                verify_version(version)
            except ServingError as exc:
                faults.append(str(exc))
    if faults:
        raise ServingError("; ".join(faults))


def verify_version(version: Path) -> Manifest:
    """Verifies a version's folder, and that the tokenizer of its number is there, is whole, and belongs to it.

    Raises:
        ServingError: something is damaged; names the file.
    """
    tokenizer = version.parent.parent / TOKENIZER_MODEL
    try:
        manifest = verify(version)
        check_links(version)
        # A repository without any tokenizer is none of click models.
        if version.parent != tokenizer and tokenizer.is_dir():
            own = verify(tokenizer / version.name)
            check_links(tokenizer / version.name)
            if own.tokenizer_sha256 != manifest.tokenizer_sha256:
                raise ManifestError(
                    f"{tokenizer / version.name} is not the tokenizer of {version}: their manifests name different "
                    "ones; copy both again from where they were exported"
                )
    except ManifestError as exc:
        raise ServingError(f"{version.parent.name} version {version.name} is refused: {exc}") from exc
    return manifest


def check_links(version: Path) -> None:
    """Checks that no link leads out of the repository: what lies elsewhere, others may change once it is verified.

    Raises:
        ManifestError: one does; names it.
    """
    repository = version.parent.parent.resolve()
    for path in (version.parent / CONFIG_FILE, version, *version.iterdir()):
        if not path.resolve().is_relative_to(repository):
            raise ManifestError(f"{path} leads out of the repository, to {path.resolve()}; put a copy in its place")


def loaded_versions(model: Path, variant: str = "") -> list[Path]:
    """The folders of the versions that Triton would load, the newest first."""
    versions = published(model.parent, model.name)
    policy = read_config(config_file(model, variant)).version_policy
    if policy.HasField("all"):
        return versions
    if policy.HasField("specific"):
        return [version for version in versions if int(version.name) in policy.specific.versions]
    return versions[: policy.latest.num_versions or 1]
