"""Who inhibits discards: the operator's word before the daemon's finding, and what changes is told once."""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import host.inhibition.discard_gate
from host.inhibition.discard_gate import DiscardGate
from host.inhibition.inhibition import REASONS, Inhibition, Inhibitor, Sign
from protocol.errors import VhostUserError
from tests.harness.processes import DEADLINE


class World:
    """A gate, what a look at the process finds, and what the gate has told."""

    def __init__(self) -> None:
        self.signs = Sign(0)
        self.helpers = True
        self.told: list[tuple[str, str] | None] = []
        self.heard = asyncio.Event()
        self.gate = DiscardGate(self.look, self.take)

    def look(self, fds: Iterable[int], _action: Callable[[list[int]], Any]) -> "asyncio.Future[int | None]":
        if not self.helpers:
            raise VhostUserError("at the limit of threads")
        found: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        found.set_result(int(self.signs))
        return found

    def found(self) -> Sign:
        return self.gate.signs

    def take(self, inhibition: Inhibition | None) -> None:
        self.told.append(None if inhibition is None else (inhibition.by.value, inhibition.why.split(",")[0]))
        self.heard.set()

    async def find(self, signs: Sign) -> None:
        self.signs = signs
        self.gate.watch(7, 1 << 30)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_operator_comes_first() -> None:
    world = World()
    world.gate.inhibit("a snapshot")
    await world.find(Sign.VFIO)
    assert world.gate.current == Inhibition(Inhibitor.OPERATOR, "a snapshot")
    world.gate.allow(force=False)
    assert world.told == [("operator", "a snapshot"), ("daemon", "the front-end has a VFIO device")]
    world.gate.allow(force=True)
    world.gate.inhibit("again")
    world.gate.allow(force=False)
    assert [told and told[0] for told in world.told[2:]] == [None, "operator", "daemon"]
    world.gate.close()


@pytest.mark.asyncio
async def test_finding_ends_with_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.find(Sign.USERFAULTFD | Sign.PINNED)
    assert world.told == [("daemon", "the front-end handles page faults by userfaultfd")]
    world.signs = Sign.STOPPED
    await world.gate.look()
    assert world.gate.signs == Sign.USERFAULTFD | Sign.PINNED  # the last look counts
    monkeypatch.setattr(host.inhibition.discard_gate, "LOOK_INTERVAL", 0.0)
    await world.gate.look()
    assert world.told[1:] == [None]
    assert world.found() == Sign.STOPPED
    world.signs = Sign.VFIO
    world.heard.clear()
    world.gate.chain_served(time.monotonic())
    await asyncio.wait_for(world.heard.wait(), DEADLINE)
    assert world.found() == Sign.VFIO
    world.gate.close()


@pytest.mark.asyncio
async def test_ring_is_served_once_a_finding_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker looks before it serves a ring, and waits for the event loop to take in what it has found."""
    looks: list[tuple[int, int]] = []

    def look_at(pid: int, memory_bytes: int, *, max_age: float) -> Sign:
        looks.append((pid, memory_bytes))
        return Sign.VFIO

    monkeypatch.setattr(host.inhibition.discard_gate, "look_at", look_at)
    world = World()
    await world.find(Sign(0))
    with ThreadPoolExecutor(1) as executor:
        workers = world.gate.before(executor)

        async def serve() -> Inhibition | None:
            return await asyncio.wrap_future(workers.submit(lambda: world.gate.current))

        assert await serve() is None  # the last look counts
        monkeypatch.setattr(host.inhibition.discard_gate, "LOOK_INTERVAL", 0.0)
        assert await serve() == Inhibition(Inhibitor.DAEMON, REASONS[Sign.VFIO])
        world.gate.close()
        await serve()
    assert looks == [(7, 1 << 30)]


@pytest.mark.asyncio
async def test_another_memory_table_is_looked_at_after_the_look_under_way() -> None:
    world = World()
    world.signs = Sign.VFIO
    world.gate.watch(7, 1 << 30)
    world.signs = Sign.PINNED
    world.gate.watch(7, 2 << 30)
    await asyncio.wait_for(world.heard.wait(), DEADLINE)
    assert world.told == [("daemon", REASONS[Sign.PINNED].split(",")[0])]
    world.gate.close()


@pytest.mark.asyncio
async def test_idle_machine_has_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[object] = []
    monkeypatch.setattr(loop, "call_at", lambda *when: timers.append(when))
    world = World()
    await world.find(Sign(0))
    world.gate.chain_served(time.monotonic())
    world.gate.close()
    assert not timers


@pytest.mark.asyncio
async def test_look_that_cannot_be_had_changes_nothing() -> None:
    world = World()
    await world.find(Sign.PINNED)
    world.helpers = False
    await world.find(Sign(0))
    assert world.gate.signs is Sign.PINNED
    world.gate.close()
