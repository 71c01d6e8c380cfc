"""Who inhibits discards: the operator's word before the daemon's finding, and what changes is told once."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import host.inhibition.discard_gate
from host.inhibition.discard_gate import DiscardGate
from host.inhibition.inhibition import Inhibition, Inhibitor, Sign
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
    monkeypatch.setattr(host.inhibition.discard_gate, "LOOK_INTERVAL", 0.01)
    world = World()
    await world.find(Sign.USERFAULTFD | Sign.PINNED)
    assert world.told == [("daemon", "the front-end handles page faults by userfaultfd")]
    world.signs = Sign.STOPPED
    world.heard.clear()
    await asyncio.wait_for(world.heard.wait(), DEADLINE)
    assert world.told[1:] == [None]
    assert world.gate.signs is Sign.STOPPED
    world.gate.close()


@pytest.mark.asyncio
async def test_look_that_cannot_be_had_changes_nothing() -> None:
    world = World()
    await world.find(Sign.PINNED)
    world.helpers = False
    await world.find(Sign(0))
    assert world.gate.signs is Sign.PINNED
    world.gate.close()
