"""Makes the text of a scrape from answers of the control socket, with the Prometheus client library.

The metrics that each guest has are written here, line by line: of hundreds of guests that is thousands of samples, for
which the library takes ten times as long. It writes all others, and tests read the whole with its parser.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from host.metrics.names import (
    ACKNOWLEDGE,
    BUILD,
    CAUSE,
    DISCARD,
    GUEST,
    GUESTS,
    INFO,
    INHIBITED,
    OTHERS,
    PREFIX,
    REFUSED,
    RESTARTS,
    SESSIONS,
    UPTIME,
    Entry,
    domains,
)

Family: TypeAlias = "CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily"


class BalloonCollector:
    """The families of one scrape: of the answers to ``query-status``, ``query-version`` and ``query-vms``."""

    def __init__(self, status: Mapping[str, Any], version: str, entries: Sequence[Entry]) -> None:
        self._status = status
        self._version = version
        self._entries = entries
        self._domains = domains(entries)

    def collect(self) -> Iterator[Family]:
        """Yield the families, also those without a sample: a rule can then tell "none" from "no such metric"."""
        yield from self._daemon_families()
        yield from self._latencies()
        yield from self._labelled_families()

    def _daemon_families(self) -> Iterator[Family]:
        status = self._status
        for name, value, is_counter in (
            (GUESTS, status["vms"], False),
            (UPTIME, status["uptime"], False),
            (SESSIONS, status["sessions"], True),
            (RESTARTS, status.get("worker-restarts", 0), True),
        ):
            family = _family(name, OTHERS[name], [], is_counter=is_counter)
            family.add_metric([], value)
            yield family
        build = _family(BUILD, OTHERS[BUILD], ["version"])
        build.add_metric([self._version], 1)
        yield build

    def _latencies(self) -> Iterator[Family]:
        bounds = [*map(str, self._status["latency-bounds"]), "+Inf"]
        for name, member in ((DISCARD, "discard"), (ACKNOWLEDGE, "acknowledge")):
            counts = [sum(column) for column in zip(*(entry[member]["counts"] for entry in self._entries), strict=True)]
            below, buckets = 0, []
            for bound, count in zip(bounds, counts or [0] * len(bounds), strict=True):
                below += count
                buckets.append((bound, below))
            seconds = sum(entry[member]["seconds"] for entry in self._entries)
            family = HistogramMetricFamily(PREFIX + name, OTHERS[name])
            family.add_metric([], buckets, seconds)
            yield family

    def _labelled_families(self) -> Iterator[Family]:
        refused = _family(REFUSED, OTHERS[REFUSED], ["domain", "reason"], is_counter=True)
        cause = _family(CAUSE, OTHERS[CAUSE], ["domain", "cause"])
        inhibited = _family(INHIBITED, OTHERS[INHIBITED], ["domain", "by"])
        info = _family(INFO, OTHERS[INFO], ["domain", "vm", "pid", "name"])
        for domain, entry in zip(self._domains, self._entries, strict=True):
            for reason, size in entry["refused-bytes"].items():
                refused.add_metric([domain, reason], size)
            for name in entry["health"]:
                cause.add_metric([domain, name], 1)
            if entry["inhibited"] is not None:
                inhibited.add_metric([domain, entry["inhibited"]["by"]], 1)
            info.add_metric([domain, str(entry["vm"]), str(entry["pid"]), entry["name"]], 1)
        yield from (refused, cause, inhibited, info)


def _family(
    name: str, text: str, labels: list[str], *, is_counter: bool = False
) -> "CounterMetricFamily | GaugeMetricFamily":
    if is_counter:
        return CounterMetricFamily(PREFIX + name.removesuffix("_total"), text, labels=labels)
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def exposition(status: Mapping[str, Any], version: str, entries: Sequence[Entry]) -> bytes:
    """Return all metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(BalloonCollector(status, version, entries))
    text: bytes = generate_latest(registry)
    return text + "".join(_guest_lines(entries)).encode()


def _guest_lines(entries: Sequence[Entry]) -> Iterator[str]:
    labels = [f'{{domain="{_escaped(domain)}"}}' for domain in domains(entries)]
    labelled = list(zip(labels, entries, strict=True))
    for metric in GUEST:
        name, take = PREFIX + metric.name, metric.value
        yield f"# HELP {name} {metric.help}\n# TYPE {name} {'counter' if metric.is_counter else 'gauge'}\n"
        for label, entry in labelled:
            if (value := take(entry)) is not None:
                yield f"{name}{label} {float(value)!r}\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
