"""What servers say of their own answers, at the metrics ports: `clickbert_scores_total`, `clickbert_requests_total`."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import closing

from deploy.canary.gateways import CANARY, STABLE, AdminError, Counts

LINE = re.compile(r"^clickbert_(?P<name>scores|requests)_total\{(?P<labels>[^}]*)\} (?P<value>\S+)", re.MULTILINE)
SCORES, ANSWERED, REFUSED = "scores", "answered", "refused"
MISSES = 3  # in a row
LABEL = re.compile(r'(\w+)="([^"]*)"')


class Servers:
    """The metrics ports of all servers. A stable one may fail to answer a few times: its last figures count then."""

    def __init__(self, stable: Sequence[tuple[str, int]], canary: Sequence[tuple[str, int]]) -> None:
        self.sides = (STABLE, stable), (CANARY, canary)
        self.last: dict[tuple[str, int], Counts] = {}
        self.missed: Counter[tuple[str, int]] = Counter()

    def counts(self) -> Counts:
        """Pairs by score, and requests, of both sides, as `Gateways.counts` has the rest. Raises AdminError."""
        counts: Counts = Counter()
        for cluster, servers in self.sides:
            for server in servers:
                try:
                    self.last[server] = read(server, cluster)
                    self.missed[server] = 0
                except AdminError:
                    self.missed[server] += 1
                    if cluster == CANARY or server not in self.last or self.missed[server] > MISSES:
                        raise
                counts.update(self.last[server])
        return counts


def read(server: tuple[str, int], cluster: str) -> Counts:
    """One server's. Raises AdminError."""
    counts: Counts = Counter()
    for line in LINE.finditer(scrape(server)):
        labels = dict(LABEL.findall(line["labels"]))
        count = round(float(line["value"]))
        where = server, labels["model"], labels["version"], labels.get("outcome")
        if line["name"] == "scores":
            counts[server, cluster, (SCORES, labels["model"], labels["up_to"]), where] = count
        elif labels["outcome"] == "answered":
            counts[server, cluster, (ANSWERED, labels["model"]), where] = count
        elif labels["outcome"] != "cancelled":  # by its caller
            counts[server, cluster, REFUSED, where] = count
    return counts


def scrape(server: tuple[str, int]) -> str:
    """What a metrics port says. Raises AdminError."""
    connection = http.client.HTTPConnection(*server, timeout=5)
    try:
        with closing(connection):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise AdminError(f"the metrics port {server[0]}:{server[1]} cannot be read: {exc}") from exc
    if answer.status != 200:
        raise AdminError(f"the metrics port {server[0]}:{server[1]} answers with status {answer.status}")
    return text
