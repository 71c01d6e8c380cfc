"""Counters: each queue has its own, and refused ranges are counted by reason."""

from collections.abc import Callable
from dataclasses import fields

import pytest

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome
from host.events.latency import BOUNDS
from host.events.metrics import VmMetrics
from host.events.queue_record import QueueRecord
from host.events.vm_events import VmEvents
from host.memory.discard_plan import Refusal
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue

NUMBERS = [field.name for field in fields(VmMetrics) if field.type is int]


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


def test_metrics_of_a_queue_are_added_to_those_of_the_machine() -> None:
    metrics, queue = VmMetrics(), VmMetrics()
    for number, counters in ((1, metrics), (2, queue)):
        for name in NUMBERS:
            setattr(counters, name, number)
        counters.acknowledge.count(0.0007 * number)
        counters.discard.count(100.0)
    metrics.refused.update(empty=1)
    queue.refused.update(empty=2, unaligned=3)
    queue.refused_bytes.update(unaligned=5)
    metrics.add(queue)
    assert {name: getattr(metrics, name) for name in NUMBERS} == dict.fromkeys(NUMBERS, 3)
    assert metrics.refused == {"empty": 3, "unaligned": 3}
    assert metrics.refused_bytes == {"unaligned": 5}
    assert metrics.acknowledge.seconds == pytest.approx(0.0021)
    assert metrics.acknowledge.counts == [bound in (0.001, 0.0025) for bound in BOUNDS] + [0]
    assert metrics.discard.counts == [0] * len(BOUNDS) + [2]


@pytest.mark.parametrize(
    ("queue", "counted"),
    [
        (BalloonQueue.REPORTING, 1),
        (BalloonQueue.INFLATE, 1),
        (BalloonQueue.FREE_PAGE, 1),
        (BalloonQueue.DEFLATE, 0),
        (BalloonQueue.STATS, 0),
    ],
)
def test_chains_that_may_discard_have_a_latency(queue: BalloonQueue, counted: int) -> None:
    metrics = VmMetrics()
    statistics = BalloonStatistics({}) if queue is BalloonQueue.STATS else None
    metrics.count(ServedChain(queue, Outcome(statistics=statistics), 7.5, 0.002, 4096, 0.0015))
    assert metrics.acknowledge.seconds == (0.002 if counted else 0)
    assert metrics.discard.seconds == (0.0015 if counted else 0)
    assert sum(metrics.acknowledge.counts) == sum(metrics.discard.counts) == counted


def pass_on(record: QueueRecord) -> None:
    record.pass_on()()


@pytest.mark.parametrize("take", [pass_on, QueueRecord.take_rest], ids=["in a turn", "after a turn"])
@pytest.mark.asyncio
async def test_event_loop_takes_in_what_a_queues_worker_has_noted(take: Callable[[QueueRecord], None]) -> None:
    metrics = VmMetrics()
    seen: list[float] = []
    told: list[float] = []
    events = VmEvents(lambda _, **fields: told.append(fields["t"]), lambda _: True, lambda: True)
    record = events.record(metrics, lambda chain: seen.append(chain.finished))
    for finished in (1.0, 2.0, 3.0):
        chain = ServedChain(BalloonQueue.REPORTING, Outcome(), finished, 0.1, 4096)
        record.chain_served(chain)
    assert (metrics.reports, seen, told) == (0, [], [])
    take(record)
    assert (metrics.reports, metrics.discarded_bytes, seen[-1], told) == (3, 3 * 4096, 3.0, [1.0, 2.0, 3.0])
    seen.clear()
    for finished in (4.0, 5.0):
        record.chain_served(ServedChain(BalloonQueue.INFLATE, Outcome(pages=1), finished, 0.1))
    take(record)
    take(record)
    assert (metrics.inflated_pages, seen, told[3:]) == (2, [4.0, 5.0], [4.0, 5.0])
    events.close()
