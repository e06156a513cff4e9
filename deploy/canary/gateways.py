"""The gateways, by Envoy's admin ports: where their calls go, and what became of them there.

Calls and errors are those of each server (`/clusters`): gRPC statuses in trailers, mirrored calls, and attempts that a
stable server then answered all count there. Times are the clusters' (`/stats`), and up to five seconds late: Envoy
gathers them so often.
"""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.gateway.run import ask

STABLE, CANARY, CANARY_FIRST = "triton", "canary", "canary_first"
CALLS = TOTAL, SUCCESS, ERROR, ACTIVE = "rq_total", "rq_success", "rq_error", "rq_active"
CLUSTERS = "/clusters?format=json"
TIMES = (
    f"/stats?format=json&histogram_buckets=detailed&filter=^cluster\\.({STABLE}|{CANARY}|{CANARY_FIRST})"
    "\\.upstream_rq_time$"
)
Counts = Counter[tuple[Any, ...]]


class AdminError(RuntimeError):
    """A gateway does not answer at its admin port, or not as expected. The message says which, and what."""


@dataclass(frozen=True)
class Split:
    """Where calls go: `weight` percent to the canary, and `shadow` percent of the others to it, too, unanswered."""

    shadow: int = 0
    weight: int = 0

    def keys(self) -> dict[str, str]:
        """As Envoy's runtime has it."""
        return {
            "canary.shadow": str(self.shadow),
            f"canary.weights.{CANARY_FIRST}": str(self.weight),
            f"canary.weights.{STABLE}": str(100 - self.weight),
        }


class Gateways:
    """All gateways that callers use, which are set alike."""

    def __init__(self, admin: Sequence[tuple[str, int]]) -> None:
        self.admin = admin

    def set(self, split: Split) -> None:
        """Sets all of them. Raises AdminError at the first that cannot be; the others stay as they are."""
        for gateway in self.admin:
            set_one(gateway, split)

    def back(self) -> list[str]:
        """Sets all that can be to the stable servers alone. Returns what the others say."""
        errors = []
        for gateway in self.admin:
            try:
                set_one(gateway, Split())
            except AdminError as exc:
                errors.append(str(exc))
        return errors

    def check(self, split: Split) -> None:
        """Raises AdminError if one is not set so (a restart forgets it), or has no canary server that is healthy."""
        for gateway in self.admin:
            entries = ask_json(gateway, "/runtime?format=json")["entries"]
            expected = split.keys() if split != Split() or entries else {}
            if any(entries.get(key, {}).get("final_value") != value for key, value in expected.items()):
                raise AdminError(f"{name(gateway)} is set otherwise: it was restarted, or somebody else set it")
            healthy = sum(
                host.get("health_status", {}).get("eds_health_status") == "HEALTHY"
                and not any(value is True for value in host["health_status"].values())
                for host in hosts(gateway)[CANARY]
            )
            if not healthy:
                raise AdminError(
                    f"{name(gateway)} finds no healthy canary server (is one up? has the gateway a --canary?)"
                )

    def counts(self) -> Counts:
        """What became of all calls since the start: by gateway, cluster, what (`CALLS`, or milliseconds), server."""
        counts: Counts = Counter()
        for gateway in self.admin:
            for cluster, servers in hosts(gateway).items():
                for host in servers:
                    where = str(host["address"])
                    for each in host["stats"]:
                        if each["name"] in CALLS:
                            counts[gateway, cluster, each["name"], where] = int(each.get("value", 0))
            for each in ask_json(gateway, TIMES)["stats"]:
                for histogram in each.get("histograms", {}).get("details", []):
                    cluster = histogram["name"].split(".")[1]
                    for bucket in histogram["totals"]:
                        edges = bucket["lower_bound"], bucket["lower_bound"] + bucket["width"]
                        counts[gateway, STABLE if cluster == STABLE else CANARY, edges, cluster] = bucket["count"]
        return counts


def name(gateway: tuple[str, int]) -> str:
    """How messages name it."""
    return f"the gateway with admin port {gateway[0]}:{gateway[1]}"


def set_one(gateway: tuple[str, int], split: Split) -> None:
    """Sets one. Raises AdminError."""
    words = "&".join(f"{key}={value}" for key, value in split.keys().items())
    answer = ask_text("POST", gateway, f"/runtime_modify?{words}")
    if answer.strip() != "OK":
        raise AdminError(f"{name(gateway)} does not take weights: {answer.strip()[:200]}")


def hosts(gateway: tuple[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The servers of both clusters as Envoy sees them. Raises AdminError."""
    found = {each["name"]: each.get("host_statuses", []) for each in ask_json(gateway, CLUSTERS)["cluster_statuses"]}
    return {cluster: found.get(cluster, []) for cluster in (STABLE, CANARY)}


def ask_json(gateway: tuple[str, int], path: str) -> dict[str, Any]:
    """What it answers. Raises AdminError."""
    text = ask_text("GET", gateway, path)
    try:
        return dict(json.loads(text))
    except ValueError as exc:
        raise AdminError(f"{name(gateway)} answers {path} by {text.strip()[:200]!r}") from exc


def ask_text(method: str, gateway: tuple[str, int], path: str) -> str:
    """What it answers. Raises AdminError."""
    host, port = gateway
    try:
        return ask(method, path, port, host)
    except (OSError, http.client.HTTPException) as exc:
        raise AdminError(f"{name(gateway)} does not answer: {exc}") from exc
