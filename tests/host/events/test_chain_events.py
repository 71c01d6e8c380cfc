"""Events about chains: each has its own, until there are too many; then there are sums, and nothing is missing."""

import asyncio
from functools import partial
from typing import Any

import pytest

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome
from host.events.chain_events import ChainEvents
from host.events.queue_events import CHAIN_EVENTS_PER_SECOND, SUM_BUILT, QueueEvents
from host.memory.discard_plan import Refusal
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue

CHAIN = {"ranges": 2, "bytes": 8192, "discarded_bytes": 4096, "refused_bytes": 4096, "seconds": 0.25}


class Log:
    """Keeps events, and wakes the waiter for one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.arrived = asyncio.Event()

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        self.arrived.set()

    def fields(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


def served(queue: BalloonQueue, finished: float, *, pages: int = 0, command_id: int | None = None) -> ServedChain:
    """Return a chain with the fields of :data:`CHAIN`."""
    outcome = Outcome(pages=pages, command_id=command_id, hint_id=7)
    outcome.plan.ranges, outcome.plan.bytes = 2, 8192
    outcome.plan.refuse(Refusal.UNALIGNED, 0x1000, 4096)
    return ServedChain(queue, outcome, finished, 0.25, 4096)


def events_of(log: Log, limited: Log | None = None, *, are_written: bool = True) -> ChainEvents:
    """Return the events of one machine, written to ``log``."""
    return ChainEvents(partial(partial, log.emit), (limited or log).emit, lambda: are_written)


def pass_on(queue: QueueEvents) -> None:
    """Have the event loop take what the worker has built."""
    queue.take(queue.pass_on())


@pytest.mark.asyncio
async def test_queues_have_their_own_events() -> None:
    log = Log()
    chains = events_of(log)
    statistics = Outcome(statistics=BalloonStatistics({"memfree": 9}, unknown=2))
    for chain in (
        ServedChain(BalloonQueue.INFLATE, Outcome(pages=3), 1.0, 0.1, 3 * 4096),
        ServedChain(BalloonQueue.DEFLATE, Outcome(pages=2), 2.0, 0.1),
        ServedChain(BalloonQueue.FREE_PAGE, Outcome(command_id=5, hint_id=5), 3.0, 0.1, 4096),
        ServedChain(BalloonQueue.STATS, statistics, 4.0, 0.1),
        ServedChain(None, Outcome(), 5.0, 0.1),
    ):
        queue = chains.queue()
        queue.chain_served(chain)
        pass_on(queue)
    assert [name for name, _ in log.events] == ["inflate", "deflate", "hint", "statistics"]
    assert [log.fields(name)[0]["pages"] for name in ("inflate", "deflate")] == [3, 2]
    assert (log.fields("hint")[0]["command_id"], log.fields("hint")[0]["command"]) == (5, 5)
    assert log.fields("statistics") == [{"t": 4.0, "memfree": 9}]


@pytest.mark.asyncio
async def test_statistics_and_refusals_are_told_within_limits() -> None:
    log, limited = Log(), Log()
    queue = events_of(log, limited).queue()
    outcome = Outcome()
    for reason in (Refusal.EMPTY, Refusal.UNALIGNED, Refusal.EMPTY):
        outcome.plan.refuse(reason, 0x1000, 5)
    queue.chain_served(ServedChain(BalloonQueue.REPORTING, outcome, 7.5, 0.0))
    queue.chain_served(ServedChain(BalloonQueue.STATS, Outcome(statistics=BalloonStatistics({})), 8.0, 0.0))
    assert limited.events == []
    pass_on(queue)
    assert [name for name, _ in log.events] == ["report"]
    assert limited.fields("refused") == [
        {"t": 7.5, "reason": "empty", "gpa": 0x1000, "bytes": 10, "ranges": 2},
        {"t": 7.5, "reason": "unaligned", "gpa": 0x1000, "bytes": 5, "ranges": 1},
    ]
    assert limited.fields("statistics") == [{"t": 8.0}]


@pytest.mark.asyncio
async def test_ordinary_chain_has_its_own_event_that_the_worker_has_built() -> None:
    log = Log()
    chains = events_of(log)
    inflating, reporting = chains.queue(), chains.queue()
    reporting.chain_served(served(BalloonQueue.REPORTING, 1.0))
    inflating.chain_served(served(BalloonQueue.INFLATE, 2.0, pages=2))
    assert log.events == []
    pass_on(reporting)
    pass_on(inflating)
    chains.close()
    assert [event for event in log.events if event[0] != "refused"] == [
        ("report", {"t": 1.0, **CHAIN}),
        ("inflate", {"t": 2.0, **CHAIN, "pages": 2}),
    ]


@pytest.mark.asyncio
async def test_events_that_are_not_written_are_not_built() -> None:
    log = Log()
    queue = events_of(log, are_written=False).queue()
    queue.chain_served(served(BalloonQueue.REPORTING, 1.0))
    assert queue.pass_on().writes == []


CHAIN_INTERVAL = 1e-4
"""Seconds between the chains of a flood: ten times as many in a second as have an event of their own."""


@pytest.mark.parametrize("batch", [1, 20, 1000], ids=["one by one", "in turns", "in long turns"])
@pytest.mark.asyncio
async def test_flood_of_chains_is_summed_up_and_told_soon(batch: int) -> None:
    log = Log()
    chains = events_of(log, Log())
    queue = chains.queue()
    flood = 5 * CHAIN_EVENTS_PER_SECOND
    for number in range(flood):
        queue.chain_served(served(BalloonQueue.INFLATE, number * CHAIN_INTERVAL, pages=1))
        if (number + 1) % batch == 0:
            pass_on(queue)
    assert len(log.events) <= CHAIN_EVENTS_PER_SECOND + flood * CHAIN_INTERVAL / SUM_BUILT
    log.arrived.clear()
    if sum(event.get("chains", 1) for _, event in log.events) < flood:
        async with asyncio.timeout(10):
            await log.arrived.wait()
    last = log.events[-1][1]
    assert last["t"] == round((flood - 1) * CHAIN_INTERVAL, 6)
    assert sum(event.get("chains", 1) for _, event in log.events) == flood
    assert sorted(event["t"] for _, event in log.events) == [event["t"] for _, event in log.events]
    for name, value in (*CHAIN.items(), ("pages", 1)):
        assert sum(event[name] for _, event in log.events) == pytest.approx(flood * value)
    chains.close()
    assert log.events[-1][1] is last


@pytest.mark.asyncio
async def test_sum_that_waits_comes_before_the_next_event_of_its_name() -> None:
    log = Log()
    queue = events_of(log, Log()).queue()
    for _ in range(CHAIN_EVENTS_PER_SECOND + 2):
        queue.chain_served(served(BalloonQueue.DEFLATE, 1.0))
    pass_on(queue)
    assert len(log.events) == CHAIN_EVENTS_PER_SECOND
    queue.chain_served(served(BalloonQueue.DEFLATE, 2.0))
    pass_on(queue)
    assert [(fields.get("chains"), fields["t"]) for _, fields in log.events[-2:]] == [(2, 1.0), (None, 2.0)]


@pytest.mark.asyncio
async def test_end_of_a_flood_is_told_at_the_end_and_other_events_keep_their_share() -> None:
    log = Log()
    chains = events_of(log, Log())
    hinting, reporting = chains.queue(), chains.queue()
    for command in (None, 7, None):
        for _ in range(2 * CHAIN_EVENTS_PER_SECOND):
            hinting.chain_served(served(BalloonQueue.FREE_PAGE, 1.0, command_id=command))
        pass_on(hinting)
    reporting.chain_served(served(BalloonQueue.REPORTING, 1.0))
    pass_on(reporting)
    assert log.events[-1] == ("report", {"t": 1.0, **CHAIN})
    chains.close()
    event, total = log.events[-1]
    assert (event, total["command_id"], total["command"]) == ("hint", 7, 7)
    assert sum(fields.get("chains", 1) for name, fields in log.events if name == "hint") == 6 * CHAIN_EVENTS_PER_SECOND
    chains.close()
    assert log.events[-1] == (event, total)
