"""What kustomize makes of the overlays, alone and with components."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import ROOT, tool

FOLDER = ROOT / "deploy" / "kubernetes"
Resource = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An overlay, the components that an operator adds to it, and one that takes the place of the overlay's scaler."""

    overlay: str
    components: tuple[str, ...] = ()
    scaler: str = ""

    def __str__(self) -> str:
        return "+".join((self.overlay, *self.components, *filter(None, [self.scaler])))


VARIANTS = [
    Variant("cpu"),
    Variant("cpu", ("monitoring", "volume")),
    Variant("cpu", ("monitoring",), scaler="keda"),
    Variant("gpu"),
    Variant("gpu", ("keda-gpu", "monitoring")),
]


@cache
def render(variant: Variant) -> str:
    """The manifests, as YAML. Raises CalledProcessError where kustomize refuses them; skips where it is missing."""
    if not variant.scaler:
        return build_of(FOLDER, variant)
    with tempfile.TemporaryDirectory() as name:
        copy = shutil.copytree(FOLDER, Path(name).resolve() / "kubernetes")
        file = copy / "overlays" / variant.overlay / "kustomization.yaml"
        text, hpa = file.read_text(encoding="utf-8"), "\n- ../../components/hpa "
        assert text.count(hpa) == 1
        file.write_text(text.replace(hpa, f"\n- ../../components/{variant.scaler} "), encoding="utf-8")
        return build_of(copy, variant)


def build_of(folder: Path, variant: Variant) -> str:
    return build(folder / "overlays" / variant.overlay, *(folder / "components" / name for name in variant.components))


def build(overlay: Path, *components: Path, more: str = "") -> str:
    """The same of folders, through a kustomization of an operator's own, with `more` in it."""
    kubectl = tool("kubectl")
    with tempfile.TemporaryDirectory() as name:
        own = Path(name).resolve()
        text = f"namespace: clickbert\nresources:\n- {os.path.relpath(overlay, own)}\n"
        listed = "".join(f"- {os.path.relpath(each, own)}\n" for each in components)
        text += (f"components:\n{listed}" if listed else "") + more
        (own / "kustomization.yaml").write_text(text, encoding="utf-8")
        words = [kubectl, "kustomize", str(own)]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout


@cache
def resources(variant: Variant) -> tuple[Resource, ...]:
    """The manifests, each as a dictionary."""
    return tuple(yaml.safe_load_all(render(variant)))


def of_kind(variant: Variant, *kinds: str) -> list[Resource]:
    return [each for each in resources(variant) if each["kind"] in kinds]


def named(variant: Variant, kind: str, name: str) -> Resource:
    (found,) = (each for each in of_kind(variant, kind) if each["metadata"]["name"] == name)
    return found


def deployment(variant: Variant, part: str) -> Resource:
    """`server` or `gateway`."""
    return named(variant, "Deployment", f"clickbert-{part}")


def pod(each: Resource) -> Resource:
    spec: Resource = each["spec"]["template"]["spec"]
    return spec


def containers(variant: Variant) -> Iterator[tuple[Resource, Resource]]:
    """Every container, behind its Deployment."""
    for each in of_kind(variant, "Deployment"):
        for container in pod(each).get("initContainers", []) + pod(each)["containers"]:
            yield each, container


def kserve_pod() -> Resource:
    """The pod that KServe makes of its overlay, as far as the overlay says."""
    variant = Variant("kserve")
    runtime = named(variant, "ServingRuntime", "clickbert")["spec"]
    predictor = named(variant, "InferenceService", "clickbert")["spec"]["predictor"]
    taken = {name: runtime[name] for name in ("containers", "volumes")}
    taken |= {name: predictor[name] for name in ("automountServiceAccountToken", "terminationGracePeriodSeconds")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "clickbert", "namespace": "clickbert"},
        "spec": taken,
    }


def labels(each: Resource) -> dict[str, str]:
    """The labels of a Deployment's pods."""
    found: dict[str, str] = each["spec"]["template"]["metadata"]["labels"]
    return found
