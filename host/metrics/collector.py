"""Makes the text of a scrape, with the Prometheus client library.

The metrics that each guest has are written here, line by line: of hundreds of guests that is thousands of samples, for
which the library takes ten times as long. It writes all others, and tests read the whole with its parser.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from host.metrics.latency_totals import LatencyTotals, Sum
from host.metrics.names import (
    ACKNOWLEDGE,
    BUILD,
    CAUSE,
    DISCARD,
    GUEST,
    GUESTS,
    HEALTHY,
    INFO,
    INHIBITED,
    OTHERS,
    PREFIX,
    REFUSED,
    RESTARTS,
    SESSIONS,
    UPTIME,
    domains,
)
from host.metrics.sample import Sample

Family: TypeAlias = "CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily"


class BalloonCollector:
    """The families of the daemon itself: of the answers to ``query-status`` and ``query-version``, and of how long
    discards and acknowledgements took."""

    def __init__(self, status: Mapping[str, Any], version: str, discards: Sum, acknowledgements: Sum) -> None:
        self._status = status
        self._version = version
        self._latencies = ((DISCARD, discards), (ACKNOWLEDGE, acknowledgements))

    def collect(self) -> Iterator[Family]:
        """Yield the families."""
        status = self._status
        for name, value, is_counter in (
            (GUESTS, status["vms"], False),
            (UPTIME, status["uptime"], False),
            (SESSIONS, status["sessions"], True),
            (RESTARTS, status.get("worker-restarts", 0), True),
        ):
            family = _family(name, is_counter=is_counter)
            family.add_metric([], value)
            yield family
        build = GaugeMetricFamily(PREFIX + BUILD, OTHERS[BUILD], labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        bounds = [*map(str, status["latency-bounds"]), "+Inf"]
        for name, latency in self._latencies:
            below, buckets = 0, []
            for bound, count in zip(bounds, latency.counts or [0] * len(bounds), strict=True):
                below += count
                buckets.append((bound, below))
            histogram = HistogramMetricFamily(PREFIX + name, OTHERS[name])
            histogram.add_metric([], buckets, latency.seconds)
            yield histogram


def _family(name: str, *, is_counter: bool) -> "CounterMetricFamily | GaugeMetricFamily":
    if is_counter:
        return CounterMetricFamily(PREFIX + name.removesuffix("_total"), OTHERS[name])
    return GaugeMetricFamily(PREFIX + name, OTHERS[name])


def exposition(status: Mapping[str, Any], version: str, samples: Sequence[Sample], totals: LatencyTotals) -> bytes:
    """Return all metrics in Prometheus's text format. ``totals`` has the latencies of all scrapes before."""
    registry = CollectorRegistry()
    registry.register(BalloonCollector(status, version, *totals.add(samples)))
    text: bytes = generate_latest(registry)
    return text + "".join(_guest_lines(samples)).encode()


def _guest_lines(samples: Sequence[Sample]) -> Iterator[str]:
    # Also the heads of metrics without a sample: a rule can then tell "none" from "no such metric".
    labels = [f'domain="{_escaped(domain)}"' for domain in domains(samples)]
    labelled = list(zip(labels, samples, strict=True))
    yield _head(REFUSED, OTHERS[REFUSED], is_counter=True)
    for domain, sample in labelled:
        yield from _lines(REFUSED, domain, "reason", sample.refused.items())
    yield _head(HEALTHY, OTHERS[HEALTHY])
    for domain, sample in labelled:
        yield f"{PREFIX}{HEALTHY}{{{domain}}} {sample.is_healthy:d}\n"
    yield _head(CAUSE, OTHERS[CAUSE])
    for domain, sample in labelled:
        yield from _lines(CAUSE, domain, "cause", ((cause, 1) for cause in sample.causes))
    yield _head(INHIBITED, OTHERS[INHIBITED])
    for domain, sample in labelled:
        if sample.inhibited is not None:
            yield from _lines(INHIBITED, domain, "by", [(sample.inhibited, 1)])
    yield _head(INFO, OTHERS[INFO])
    for domain, sample in labelled:
        yield f'{PREFIX}{INFO}{{{domain},vm="{sample.vm}",pid="{sample.pid}",name="{_escaped(sample.name)}"}} 1\n'
    columns = zip(*(sample.values for sample in samples), strict=True) if samples else [()] * len(GUEST)
    for metric, column in zip(GUEST, columns, strict=True):
        yield _head(metric.name, metric.help, is_counter=metric.is_counter)
        begin = f"{PREFIX}{metric.name}{{"
        for domain, value in zip(labels, column, strict=True):
            if value is not None:
                yield f"{begin}{domain}}} {value}\n"


def _head(name: str, text: str, *, is_counter: bool = False) -> str:
    return f"# HELP {PREFIX}{name} {text}\n# TYPE {PREFIX}{name} {'counter' if is_counter else 'gauge'}\n"


def _lines(name: str, domain: str, label: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    for text, value in values:
        yield f'{PREFIX}{name}{{{domain},{label}="{_escaped(text)}"}} {value}\n'


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
