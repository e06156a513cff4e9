"""Writes the PrometheusRule of the component `monitoring` from deploy/monitoring/rules.yaml.

    python -m deploy.kubernetes.rules

A rule is written, and tested with promtool, in that file alone.
"""

from __future__ import annotations

from pathlib import Path

RULES = Path(__file__).parents[1] / "monitoring" / "rules.yaml"
RESOURCE = Path(__file__).parent / "components" / "monitoring" / "rules.yaml"
HEAD = """\
# Made of deploy/monitoring/rules.yaml by `python -m deploy.kubernetes.rules`: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: clickbert
spec:
"""


def resource(rules: str) -> str:
    """The resource whose `spec` is that file, comments and all."""
    return HEAD + "".join(f"  {line}\n" if line.strip() else "\n" for line in rules.splitlines())


if __name__ == "__main__":
    RESOURCE.write_text(resource(RULES.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"rules: {RESOURCE}")
