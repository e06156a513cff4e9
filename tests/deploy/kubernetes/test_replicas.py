"""The cluster's own alerts fire while replicas are missing, and only then; what has not started is not scraped."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import ROOT
from tests.test_docs import anchors

MONITORING = ROOT / "deploy" / "kubernetes" / "components" / "monitoring"
SERVER = '{namespace="clickbert", deployment="clickbert-server", job="kube-state-metrics"}'


def groups() -> dict[str, Any]:
    return dict(yaml.safe_load((MONITORING / "replicas.yaml").read_text(encoding="utf-8"))["spec"])


def case(wanted: str, available: str, firing: dict[str, list[str]]) -> dict[str, Any]:
    """A case of promtool's: `firing` has the times at which an alert must fire, or, with a !, must not."""
    values = {"kube_deployment_spec_replicas": wanted, "kube_deployment_status_replicas_available": available}
    alerts = {rule["alert"]: rule for group in groups()["groups"] for rule in group["rules"]}

    def look(name: str, time: str) -> dict[str, Any]:
        quiet = {"eval_time": time.lstrip("!"), "alertname": name, "exp_alerts": []}
        if time.startswith("!"):
            return quiet
        labels = {"namespace": "clickbert", "deployment": "clickbert-server"}
        texts = {
            key: text.replace("{{ $labels.deployment }}", labels["deployment"]).replace("{{ $value }}", "1")
            for key, text in alerts[name]["annotations"].items()
        }
        more = {"job": "kube-state-metrics"} if name == "NoReplicas" else {}
        expected = {"exp_labels": alerts[name]["labels"] | labels | more, "exp_annotations": texts}
        return quiet | {"exp_alerts": [expected]}

    return {
        "interval": "1m",
        "input_series": [{"series": name + SERVER, "values": value} for name, value in values.items()],
        "alert_rule_test": [look(name, time) for name, times in firing.items() for time in times],
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_they_fire_while_replicas_are_missing_and_not_in_a_rollout(tmp_path: Path) -> None:
    cases = [
        case("2x30", "2x30", {"ReplicasMissing": ["!30m"], "NoReplicas": ["!30m"]}),  # whole
        case("2x30", "2x4 1x10 2x20", {"ReplicasMissing": ["!14m", "!30m"]}),  # one starts within ten minutes
        case("2x30", "2x4 1x30", {"ReplicasMissing": ["!10m", "25m"], "NoReplicas": ["!25m"]}),
        case("1x30", "1x4 0x30", {"ReplicasMissing": ["25m"], "NoReplicas": ["!8m", "12m"]}),
    ]
    (tmp_path / "rules.json").write_text(json.dumps(groups()), encoding="utf-8")
    (tmp_path / "cases.json").write_text(json.dumps({"rule_files": ["rules.json"], "tests": cases}), encoding="utf-8")
    words = ["promtool", "test", "rules", tmp_path / "cases.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_says_what_to_read() -> None:
    for group in groups()["groups"]:
        for rule in group["rules"]:
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert anchor in anchors(ROOT / page)


def test_a_server_that_is_not_ready_and_a_gateway_that_does_not_run_yet_are_no_targets() -> None:
    """And a gateway that is not ready is one: its figures show that no server is healthy."""
    monitors = yaml.safe_load_all((MONITORING / "scrape.yaml").read_text(encoding="utf-8"))
    dropped = {}
    for monitor in monitors:
        (drop,) = (each for each in monitor["spec"]["endpoints"][0]["relabelings"] if each.get("action") == "drop")
        dropped[monitor["metadata"]["name"]] = (*drop["sourceLabels"], drop["regex"])
    assert dropped == {
        "clickbert-server": ("__meta_kubernetes_pod_ready", "false"),
        "clickbert-gateway": ("__meta_kubernetes_pod_phase", "Pending"),
    }
