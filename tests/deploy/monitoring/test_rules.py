"""The rules are valid, fire when they must and are silent when they must be, and the runbook has each alert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs import anchors

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules.yaml"
SEVERITY = r"page|warning|\{\{ if .+ \}\}page\{\{ else \}\}warning\{\{ end \}\}"
CASES = Path(__file__).with_name("cases.yaml")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed, so the rules are not run (Debian: prometheus)"
)


@cache
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def cases() -> list[dict[str, Any]]:
    return list(yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"])


@cache
def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "dashboards" / "clickbert.json").read_text(encoding="utf-8")))


def panels() -> list[dict[str, Any]]:
    return list(dashboard()["panels"])


def variables() -> list[dict[str, Any]]:
    """Those that Prometheus fills."""
    return [variable for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]


def expressions() -> list[str]:
    """All that Prometheus is asked, by rules and by the dashboard."""
    return (
        [rule["expr"] for rule in rules()]
        + [target["expr"] for panel in panels() for target in panel["targets"]]
        + [variable["query"]["query"] for variable in variables()]
    )


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
each_alert = pytest.mark.parametrize("name", ALERTS)


@needs_promtool
def test_rules_are_valid() -> None:
    subprocess.run(["promtool", "check", "rules", "--lint-fatal", RULES], check=True)


@pytest.mark.deploy
@needs_promtool
def test_every_case_ends_as_it_must(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)  # the cases name the file beside them
    shutil.copy(CASES, tmp_path)
    result = subprocess.run(
        ["promtool", "test", "rules", tmp_path / CASES.name], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@each_alert
def test_an_alert_has_cases_for_firing_and_for_silence(name: str) -> None:
    looks = [
        look
        for case in cases()
        if case["name"].startswith(f"{name}: ")
        for look in case["alert_rule_test"]
        if look["alertname"] == name
    ]
    assert {bool(look["exp_alerts"]) for look in looks} == {True, False}


def test_a_case_is_named_after_its_alert() -> None:
    for case in cases():
        assert case["name"].partition(":")[0] in ALERTS, case["name"]


@each_alert
def test_an_alert_says_how_severe_it_is_and_what_to_read(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(SEVERITY, alert["labels"]["severity"])
    assert "{{" in alert["annotations"]["summary"] or name == "NoSuccess"  # which has nothing to tell one from another
    assert alert["annotations"]["description"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors(ROOT / page)


def test_recorded_figures_that_are_read_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    read = {name for expression in expressions() for name in re.findall(r"\b\w+:\w+:\w+", expression)}
    assert read == recorded


def test_every_panel_names_the_data_source_that_is_chosen() -> None:
    for panel in panels():
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {"${datasource}"}


@each_alert
def test_the_dashboard_shows_what_an_alert_is_about(name: str) -> None:
    assert [panel for panel in panels() if re.search(rf"\b{name}\b", panel["description"])]


def test_limits_of_the_dashboard_are_those_of_the_alerts() -> None:
    drawn = 0
    for panel in panels():
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]:
            named = re.search(r"Alerts?: (\w+)", panel["description"])
            assert named, panel["title"]
            expression = ALERTS[named[1]]["expr"]
            limits = {float(number) for number in re.findall(r"> ([\d.]+)", expression)}
            if panel["fieldConfig"]["defaults"]["unit"] == "ms":  # the alert's is a bucket's, in the recording rule
                limits = {float(bound) for rule in rules() for bound in re.findall(r'le=~"(\d+)', rule["expr"])}
            assert step["value"] in limits, panel["title"]
            drawn += 1
    assert drawn > 8
