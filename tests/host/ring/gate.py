"""Workers that a test holds inside a call, above all inside a discard."""

import threading
from dataclasses import dataclass, field

import pytest

import host.ring.ring_service
from host.memory.discard import punch_hole
from tests.harness.processes import DEADLINE


@dataclass
class Gate:
    """Holds a worker inside a call until the test lets it go on. A gated discard notes its offset when it goes on."""

    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    discarded: list[int] = field(default_factory=list)

    def pass_through(self) -> None:
        """Come to the gate, and wait until it is open."""
        self.entered.set()
        assert self.opened.wait(DEADLINE)


def gated_discard(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Have every discard of a ring's worker pass through the gate that is returned."""
    gate = Gate()

    def slow_punch_hole(fd: int, offset: int, length: int) -> int:
        gate.pass_through()
        gate.discarded.append(offset)
        return punch_hole(fd, offset, length)

    monkeypatch.setattr(host.ring.ring_service, "punch_hole", slow_punch_hole)
    return gate
