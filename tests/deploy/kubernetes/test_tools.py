"""What others say of the manifests: the schemas of Kubernetes, and checkov's rules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kubernetes.rendering import VARIANTS, kserve_pod, render, resources
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy
OLDEST, NEWEST = "1.30", "1.37"
# Resources of definitions that a cluster gets from others have no schema among Kubernetes' own.
OTHERS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


def validate(folder: Path, release: str) -> list[str]:
    """What kubernetes-validate says of the files there: a line for each resource."""
    words = [tool("kubernetes-validate"), "--strict", "-k", release, *sorted(map(str, folder.glob("*.yaml")))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.splitlines()


def checkov(folder: Path) -> dict[str, Any]:
    """What checkov says of the files there."""
    words = [tool("checkov"), "--skip-download", "--framework", "kubernetes", "--output", "json"]
    for file in sorted(folder.glob("*.yaml")):
        words += ["--file", str(file)]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    return found


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_the_schemas_of_kubernetes_take_them_without_a_warning(release: str, tmp_path: Path) -> None:
    expected = 0
    for variant in VARIANTS:
        own = [each for each in resources(variant) if each["kind"] not in OTHERS]
        (tmp_path / f"{variant}.yaml").write_text(yaml.safe_dump_all(own), encoding="utf-8")
        expected += len(own)
    (tmp_path / "kserve.yaml").write_text(yaml.safe_dump(kserve_pod()), encoding="utf-8")
    expected += 1
    lines = validate(tmp_path, release)
    assert [line for line in lines if not (line.startswith("INFO ") and f"against version {release}" in line)] == []
    assert len(lines) == expected


def test_a_field_that_there_is_not_is_refused(tmp_path: Path) -> None:
    wrong = render(VARIANTS[0]).replace("maxSurge:", "maxSurplus:")
    (tmp_path / "all.yaml").write_text(wrong, encoding="utf-8")
    assert any(line.startswith("ERROR ") and "maxSurplus" in line for line in validate(tmp_path, NEWEST))


def test_checkov_finds_nothing_but_what_an_annotation_gives_a_reason_for(tmp_path: Path) -> None:
    for variant in VARIANTS:
        (tmp_path / f"{variant}.yaml").write_text(render(variant), encoding="utf-8")
    report = checkov(tmp_path)
    failed = [(each["check_id"], each["resource"]) for each in report["results"]["failed_checks"]]
    assert not failed
    assert report["summary"]["passed"] > 100 * len(VARIANTS)
    results = [each["check_result"] | each for each in report["results"]["skipped_checks"]]
    assert {each["check_id"] for each in results} == {"CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_43"}
    assert all(len(each["suppress_comment"]) > 20 for each in results)


def test_checkov_finds_nothing_in_kserves_pod_but_what_its_overlay_leaves_to_others(tmp_path: Path) -> None:
    (tmp_path / "kserve.yaml").write_text(yaml.safe_dump(kserve_pod()), encoding="utf-8")
    found = checkov(tmp_path)["results"]
    assert {each["check_id"] for each in found["failed_checks"]} == {
        *("CKV_K8S_15", "CKV_K8S_43"),  # the image: as base/servers.yaml gives reasons for
        "CKV_K8S_29",  # a runtime has no security context for the pod; its container has one
        "CKV2_K8S_6",  # the overlay brings no NetworkPolicy: where KServe's traffic comes from is the cluster's matter
    }
    assert len(found["passed_checks"]) > 50
