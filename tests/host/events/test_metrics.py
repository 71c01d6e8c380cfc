"""Counters and events: what is told of each chain, and what of that is held within limits."""

from typing import Any

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome
from host.events.metrics import VmMetrics
from host.memory.discard_plan import Refusal
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


class Log:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def fields(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


def test_queues_have_their_own_counters_and_event() -> None:
    metrics, log = VmMetrics(), Log()
    metrics.count(ServedChain(BalloonQueue.INFLATE, Outcome(pages=3), 1.0, 0.1, 3 * 4096), log.emit, log.emit)
    metrics.count(ServedChain(BalloonQueue.DEFLATE, Outcome(pages=2), 2.0, 0.1), log.emit, log.emit)
    hint = Outcome(command_id=5, hint_id=5)
    hint.plan.bytes = 8192
    metrics.count(ServedChain(BalloonQueue.FREE_PAGE, hint, 3.0, 0.1, 4096), log.emit, log.emit)
    statistics = Outcome(statistics=BalloonStatistics({"memfree": 9}, unknown=2))
    metrics.count(ServedChain(BalloonQueue.STATS, statistics, 4.0, 0.1), log.emit, log.emit)
    assert [name for name, _ in log.events] == ["inflate", "deflate", "hint", "statistics"]
    assert (metrics.inflated_pages, metrics.deflated_pages, metrics.discarded_bytes) == (3, 2, 4 * 4096)
    assert (metrics.hinted_bytes, metrics.unknown_tags) == (8192, 2)
    assert [log.fields(name)[0]["pages"] for name in ("inflate", "deflate")] == [3, 2]
    assert (log.fields("hint")[0]["command_id"], log.fields("hint")[0]["command"]) == (5, 5)
    assert log.fields("statistics") == [{"t": 4.0, "memfree": 9}]


def test_refusals_are_emitted_within_limits() -> None:
    metrics, log, limited = VmMetrics(), Log(), Log()
    outcome = Outcome()
    for reason in (Refusal.EMPTY, Refusal.UNALIGNED, Refusal.EMPTY):
        outcome.plan.refuse(reason, 0x1000, 5)
    metrics.count(ServedChain(BalloonQueue.REPORTING, outcome, 7.5, 0.0), log.emit, limited.emit)
    assert [name for name, _ in log.events] == ["report"]
    assert limited.fields("refused") == [
        {"t": 7.5, "reason": "empty", "gpa": 0x1000, "bytes": 10, "ranges": 2},
        {"t": 7.5, "reason": "unaligned", "gpa": 0x1000, "bytes": 5, "ranges": 1},
    ]
    assert metrics.refused == {"empty": 2, "unaligned": 1}
