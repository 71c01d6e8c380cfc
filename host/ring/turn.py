"""A worker's turn at a ring: the chains that it served, the record of them, and how the turn ended."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from host.balloon.virtio_balloon import Outcome
from host.memory.discard_plan import RefusedRanges
from host.ring.service_state import ServiceEvent
from protocol.errors import VirtqueueError
from protocol.virtio_balloon import BalloonQueue


@dataclass(slots=True)
class ServedChain:
    """The outcome of one chain. ``finished`` is when it was given back, or when it was seen if it is held
    (CLOCK_MONOTONIC, seconds), ``seconds`` the time since it was taken, of which discards took ``discard_seconds``."""

    queue: BalloonQueue | None
    outcome: Outcome
    finished: float
    seconds: float
    discarded_bytes: int = 0
    discard_seconds: float = 0.0
    refused: list[RefusedRanges] = field(init=False)

    def __post_init__(self) -> None:
        # Here, on the worker: a hostile chain has thousands of ranges, and the event loop serves all machines.
        plan = self.outcome.plan
        self.refused = plan.refused_by_reason()
        plan.discards, plan.refused = [], []  # done, and thousands of them may wait for the loop


class ChainRecord(Protocol):
    """Takes note of a queue's chains. It is the worker's that has the ring, else the event loop's."""

    def chain_served(self, chain: ServedChain) -> None:
        """Take note of a chain that was served."""

    def pass_on(self) -> Callable[[], None]:
        """Begin anew, and return what has the event loop take in the chains so far when it is called there."""

    def take_rest(self) -> None:
        """On the event loop, which has the record: take in the chains that were not passed on."""


@dataclass(slots=True)
class Turn:
    """One turn: how many chains this share of it has, whether it has had any, when the event loop last got what was
    noted of some (CLOCK_MONOTONIC, seconds), how the turn ended, and the error that broke the ring."""

    chains: int = 0
    has_served: bool = False
    handed_over: float = field(default_factory=time.monotonic)
    end: ServiceEvent = ServiceEvent.EMPTY
    broken: VirtqueueError | None = None
