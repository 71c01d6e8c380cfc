"""What the emulated machine does with its memory. A workload is a generator: it acts on a :class:`Machine` and yields
the seconds to let pass before it goes on, zero to let others have a turn.

A workload is named on the command line as ``NAME[:key=value,...]``, for example ``memhog:size=512M,hold=2``. All are
seeded and repeatable: the same seed gives the same sequence of allocations.

Must not know: the device, real time.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.mmzone import MAX_ORDER
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.units import parse_size

Steps = Iterator[float]

RETRY_SECONDS: Final = 0.05
RETRIES: Final = 40
"""How long a workload waits for memory before it gives up: blocks being reported come back within milliseconds."""

_PERCENT_OF_MEMORY: Final = 90
_CHURN_ORDERS: Final = (0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 9)


class OutOfMemoryError(UsageError):
    """A workload asked for more than the machine has; what it held was freed, as the kernel's OOM killer would do."""


def _allocate(machine: Machine, order: int, held: list[Block]) -> Iterator[float]:
    # Give the reporter time to bring blocks back before calling the machine out of memory.
    for _ in range(RETRIES):
        block = machine.allocate(order)
        if block is not None:
            held.append(block)
            return
        yield RETRY_SECONDS
    for block in held:
        machine.free(block)
    held.clear()
    raise OutOfMemoryError(f"out of memory: no block of order {order} came free")


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Does nothing for ``seconds`` (0: until the machine is stopped)."""

    seconds: float = 0.0

    def run(self, machine: Machine, _seed: int) -> Steps:
        """Let time pass."""
        machine.phase("idle")
        if self.seconds > 0:
            yield self.seconds
            return
        while True:
            yield 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memhog:
    """Fills ``size`` bytes (0: 90 % of what is free) in blocks of ``order``, holds them, frees them; ``repeat`` times.

    ``hold`` and ``rest`` are seconds after filling and after freeing; ``rate`` limits filling to so many bytes a second
    (0: as fast as it goes).
    """

    size: int = 0
    order: int = 9
    hold: float = 1.0
    rest: float = 0.0
    rate: int = 0
    repeat: int = 1

    def run(self, machine: Machine, _seed: int) -> Steps:
        """Fill and free. Raises :class:`OutOfMemoryError` when the machine has too little."""
        size = self.size or machine.free_bytes * _PERCENT_OF_MEMORY // 100
        block_bytes = PAGE_SIZE << self.order
        pause = block_bytes / self.rate if self.rate else 0.0
        for _ in range(self.repeat):
            machine.phase("fill")
            held: list[Block] = []
            for _ in range(-(-size // block_bytes)):
                yield from _allocate(machine, self.order, held)
                yield pause
            machine.phase("hold")
            yield self.hold
            machine.phase("free")
            for block in held:
                machine.free(block)
                yield 0.0
            machine.phase("rest")
            yield self.rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Allocates blocks of random orders with random lifetimes for ``seconds``, holding about ``size`` bytes
    (0: half of what is free).

    ``lifetime`` is the mean life of a block in seconds, ``tick`` the seconds between bursts of work.
    """

    size: int = 0
    seconds: float = 10.0
    lifetime: float = 1.0
    tick: float = 0.01

    def run(self, machine: Machine, seed: int) -> Steps:
        """Allocate and free until the time is over; then free all that is left."""
        machine.phase("churn")
        chance = random.Random(seed)
        size = self.size or machine.free_bytes // 2
        serial = itertools.count()
        held: list[tuple[float, int, Block]] = []
        held_bytes = 0
        for tick in range(int(self.seconds / self.tick)):
            now = tick * self.tick
            while held and held[0][0] <= now:
                _, _, block = heapq.heappop(held)
                machine.free(block)
                held_bytes -= PAGE_SIZE << block.order
            while held_bytes < size:
                order = chance.choice(_CHURN_ORDERS)
                new = machine.allocate(order)
                if new is None:
                    break
                held_bytes += PAGE_SIZE << order
                heapq.heappush(held, (now + chance.expovariate(1 / self.lifetime), next(serial), new))
            yield self.tick
        machine.phase("free")
        for _, _, block in held:
            machine.free(block)


Workload = Idle | Memhog | Churn

_Parse = Callable[[str], float | int]

_KINDS: Final[dict[str, tuple[type[Workload], dict[str, _Parse]]]] = {
    "idle": (Idle, {"seconds": float}),
    "memhog": (
        Memhog,
        {"size": parse_size, "order": int, "hold": float, "rest": float, "rate": parse_size, "repeat": int},
    ),
    "churn": (Churn, {"size": parse_size, "seconds": float, "lifetime": float, "tick": float}),
}

WORKLOAD_NAMES: Final = tuple(_KINDS)


def parse_workload(text: str) -> Workload:
    """Return the workload that ``NAME[:key=value,...]`` means.

    Raises:
        UsageError: an unknown name or key, a value that is no number or makes no sense.
    """
    name, _, rest = text.partition(":")
    if name not in _KINDS:
        raise UsageError(f"unknown workload {name!r}, known are {', '.join(WORKLOAD_NAMES)}")
    kind, parsers = _KINDS[name]
    values: dict[str, float | int] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not equals or key not in parsers:
            raise UsageError(f"workload {name}: unknown option {item!r}, known are {', '.join(parsers)}")
        try:
            values[key] = parsers[key](value)
        except (ValueError, UsageError) as error:
            raise UsageError(f"workload {name}: {key}={value!r} is not a number") from error
    _check(name, values)
    return kind(**values)  # type: ignore[arg-type]


_MUST_BE_POSITIVE: Final = ("lifetime", "tick", "repeat")


def _check(name: str, values: dict[str, float | int]) -> None:
    for key, value in values.items():
        # "not (>= 0)" and not "< 0": a NaN is refused as well.
        if not value >= 0 or value == float("inf") or (key in _MUST_BE_POSITIVE and value == 0):
            raise UsageError(f"workload {name}: {key}={value} is out of range")
    if not 0 <= values.get("order", 0) <= MAX_ORDER:
        raise UsageError(f"workload {name}: order={values['order']} is not from 0 to {MAX_ORDER}")
