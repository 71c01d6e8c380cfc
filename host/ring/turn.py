"""What a worker did while it had a ring: chains, and how its turn ended."""

import time
from dataclasses import dataclass, field

from host.balloon.virtio_balloon import Outcome
from host.memory.discard_plan import RefusedRanges
from host.ring.service_state import ServiceEvent
from protocol.errors import VirtqueueError
from protocol.virtio_balloon import BalloonQueue


@dataclass(slots=True)
class ServedChain:
    """What became of one chain. ``finished`` is when it was given back, or when it was seen if it is held
    (CLOCK_MONOTONIC, seconds), ``seconds`` the time since it was taken."""

    queue: BalloonQueue | None
    outcome: Outcome
    finished: float
    seconds: float
    discarded_bytes: int = 0
    refused: list[RefusedRanges] = field(init=False)

    def __post_init__(self) -> None:
        # Here, on the worker: a hostile chain has thousands of ranges, and the event loop serves everybody.
        self.refused = self.outcome.plan.refused_by_reason()


@dataclass(slots=True)
class Turn:
    """What one worker did: the chains it served that the loop has not heard of, how many it served in all, when the
    loop last heard of some (CLOCK_MONOTONIC, seconds), how it ended, and what broke the ring."""

    served: list[ServedChain] = field(default_factory=list)
    chains: int = 0
    told: float = field(default_factory=time.monotonic)
    end: ServiceEvent = ServiceEvent.EMPTY
    broken: VirtqueueError | None = None
