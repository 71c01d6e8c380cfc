"""Events about chains: each has its own, until there are too many; then there are sums, and nothing is missing."""

import asyncio
from typing import Any

import pytest

from host.events.chain_events import CHAIN_EVENTS_PER_SECOND, ChainEvents

CHAIN = {"ranges": 2, "bytes": 8192, "discarded_bytes": 4096, "refused_bytes": 4096, "seconds": 0.25}


class Log:
    """Keeps events, and wakes the waiter for one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.arrived = asyncio.Event()

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        self.arrived.set()


@pytest.mark.asyncio
async def test_ordinary_chain_has_its_own_event() -> None:
    log = Log()
    chains = ChainEvents(log.emit)
    chains.tell("report", t=1.0, **CHAIN)
    chains.tell("inflate", t=2.0, **CHAIN, pages=2)
    chains.close()
    assert log.events == [("report", {"t": 1.0, **CHAIN}), ("inflate", {"t": 2.0, **CHAIN, "pages": 2})]


@pytest.mark.asyncio
async def test_flood_of_chains_is_summed_up_and_told_soon() -> None:
    log = Log()
    chains = ChainEvents(log.emit)
    flood = 5 * CHAIN_EVENTS_PER_SECOND
    for number in range(flood):
        chains.tell("inflate", t=float(number), **CHAIN, pages=1)
    assert len(log.events) <= 2 * CHAIN_EVENTS_PER_SECOND  # two seconds may have had a part of it
    log.arrived.clear()
    async with asyncio.timeout(10):
        await log.arrived.wait()
    last = log.events[-1][1]
    assert last["t"] == flood - 1
    assert sum(event.get("chains", 1) for _, event in log.events) == flood
    for name, value in (*CHAIN.items(), ("pages", 1)):
        assert sum(event[name] for _, event in log.events) == flood * value
    chains.close()
    assert log.events[-1][1] is last


@pytest.mark.asyncio
async def test_end_of_a_flood_is_told_at_the_end_and_other_events_keep_their_share() -> None:
    log = Log()
    chains = ChainEvents(log.emit)
    for command in (None, 7, None):
        for _ in range(2 * CHAIN_EVENTS_PER_SECOND):
            chains.tell("hint", t=1.0, **CHAIN, command_id=7, command=command)
    chains.tell("report", t=1.0, **CHAIN)
    assert log.events[-1] == ("report", {"t": 1.0, **CHAIN})
    chains.close()
    event, total = log.events[-1]
    assert (event, total["command_id"], total["command"]) == ("hint", 7, 7)
    assert sum(fields.get("chains", 1) for name, fields in log.events if name == "hint") == 6 * CHAIN_EVENTS_PER_SECOND
    chains.close()
    assert log.events[-1] == (event, total)
