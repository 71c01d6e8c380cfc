"""Counters: each queue has its own, and refused ranges are counted by reason."""

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome
from host.events.metrics import VmMetrics
from host.memory.discard_plan import Refusal
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


def test_queues_have_their_own_counters() -> None:
    metrics = VmMetrics()
    metrics.count(ServedChain(BalloonQueue.INFLATE, Outcome(pages=3), 1.0, 0.1, 3 * 4096))
    metrics.count(ServedChain(BalloonQueue.DEFLATE, Outcome(pages=2), 2.0, 0.1))
    hint = Outcome(command_id=5, hint_id=5)
    hint.plan.bytes = 8192
    metrics.count(ServedChain(BalloonQueue.FREE_PAGE, hint, 3.0, 0.1, 4096))
    statistics = Outcome(statistics=BalloonStatistics({"memfree": 9}, unknown=2))
    metrics.count(ServedChain(BalloonQueue.STATS, statistics, 4.0, 0.1))
    assert (metrics.inflated_pages, metrics.deflated_pages, metrics.discarded_bytes) == (3, 2, 4 * 4096)
    assert (metrics.hinted_bytes, metrics.unknown_tags) == (8192, 2)
    assert (metrics.reports, metrics.reported_bytes) == (0, 0)


def test_refused_ranges_are_counted_by_reason() -> None:
    metrics = VmMetrics()
    outcome = Outcome()
    outcome.plan.bytes = 15
    for reason in (Refusal.EMPTY, Refusal.UNALIGNED, Refusal.EMPTY):
        outcome.plan.refuse(reason, 0x1000, 5)
    metrics.count(ServedChain(BalloonQueue.REPORTING, outcome, 7.5, 0.0))
    assert (metrics.reports, metrics.reported_bytes) == (1, 15)
    assert metrics.refused == {"empty": 2, "unaligned": 1}
