"""Counters and events: what is told of each chain, and how much is told of a driver that goes wrong without end."""

from typing import Any

from host.balloon_statistics import BalloonStatistics
from host.device_memory import Refusal
from host.metrics import REFUSED_PER_SECOND, STATISTICS_PER_SECOND, VmMetrics
from host.ring_service import ServedChain
from host.virtio_balloon import Outcome
from protocol.virtio_balloon import BalloonQueue


class Log:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def fields(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


def refused_chain(at: float) -> ServedChain:
    outcome = Outcome()
    outcome.plan.refuse(Refusal.EMPTY, 0, 0)
    return ServedChain(BalloonQueue.REPORTING, outcome, at, 0.0)


def test_each_queue_has_its_counters_and_its_event() -> None:
    metrics, log = VmMetrics(), Log()
    metrics.count(ServedChain(BalloonQueue.INFLATE, Outcome(pages=3), 1.0, 0.1, 3 * 4096), log.emit)
    metrics.count(ServedChain(BalloonQueue.DEFLATE, Outcome(pages=2), 2.0, 0.1), log.emit)
    hint = Outcome(command_id=5, hint_id=5)
    hint.plan.bytes = 8192
    metrics.count(ServedChain(BalloonQueue.FREE_PAGE, hint, 3.0, 0.1, 4096), log.emit)
    statistics = Outcome(statistics=BalloonStatistics({"memfree": 9}, unknown=2))
    metrics.count(ServedChain(BalloonQueue.STATS, statistics, 4.0, 0.1), log.emit)
    assert [name for name, _ in log.events] == ["inflate", "deflate", "hint", "statistics"]
    assert (metrics.inflated_pages, metrics.deflated_pages, metrics.discarded_bytes) == (3, 2, 4 * 4096)
    assert (metrics.hinted_bytes, metrics.unknown_tags) == (8192, 2)
    assert [log.fields(name)[0]["pages"] for name in ("inflate", "deflate")] == [3, 2]
    assert (log.fields("hint")[0]["command_id"], log.fields("hint")[0]["command"]) == (5, 5)
    assert log.fields("statistics") == [{"t": 4.0, "memfree": 9}]


def test_refusals_without_end_are_counted_but_not_all_told() -> None:
    metrics, log = VmMetrics(), Log()
    for _ in range(REFUSED_PER_SECOND + 50):
        metrics.count(refused_chain(7.5), log.emit)
    assert len(log.fields("refused")) == REFUSED_PER_SECOND
    assert len(log.fields("report")) == REFUSED_PER_SECOND + 50
    metrics.count(refused_chain(8.0), log.emit)
    assert log.fields("refused")[-1]["held_back"] == 50
    metrics.count(refused_chain(8.5), log.emit)
    assert "held_back" not in log.fields("refused")[-1]
    assert (metrics.refused["empty"], metrics.events_held_back) == (REFUSED_PER_SECOND + 52, 50)


def test_statistics_that_nobody_asked_for_are_not_all_told() -> None:
    metrics, log = VmMetrics(), Log()
    for _ in range(1000):
        metrics.count(
            ServedChain(BalloonQueue.STATS, Outcome(statistics=BalloonStatistics({"majflt": 1})), 3.0, 0.0), log.emit
        )
    assert len(log.fields("statistics")) == STATISTICS_PER_SECOND
