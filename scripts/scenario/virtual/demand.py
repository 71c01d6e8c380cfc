"""What the workloads of ``balloon-guest`` need over time, as a curve: for machines without pages.

A curve goes straight from one knot to the next. Sizes and durations of each workload vary by up to :data:`SPREAD` with
the seed, so that many machines of one kind do not move in step.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from guest.workloads.build import Build
from guest.workloads.churn import Churn
from guest.workloads.memhog import Idle, Memhog
from guest.workloads.page_fault import PageFault
from guest.workloads.pagecache import PageCacheUser
from guest.workloads.workload import Workload
from protocol.errors import UsageError
from protocol.units import GIB

SPREAD: Final = 0.1
"""Share by which sizes and durations vary, up and down."""

FASTEST: Final = GIB
"""Bytes a second at which a workload without a rate fills memory."""

_MOST_KNOTS: Final = 100_000
_COMPILING: Final = 0.8
_COMPILERS_SHARE: Final = 0.3
"""Of a step of a build: the part in which compilers run, and the memory that they have then, on average."""


class Demand:
    """Bytes that programs hold at a time, and those among them that are page cache."""

    def __init__(self) -> None:
        self._times = [0.0]
        self._programs = [0.0]
        self._cache = [0.0]
        self.ends = True
        """Whether there is an end."""

    @property
    def end(self) -> float:
        """When the last workload has ended, infinity for never."""
        return self._times[-1] if self.ends else float("inf")

    def at(self, when: float) -> tuple[int, int]:
        """Return (bytes of programs without cache, bytes of cache)."""
        place = bisect_right(self._times, when)
        if place == len(self._times):
            return int(self._programs[-1]), int(self._cache[-1])
        before, after = self._times[place - 1], self._times[place]
        part = (when - before) / (after - before)
        programs, cache = self._programs, self._cache
        return (
            int(programs[place - 1] + part * (programs[place] - programs[place - 1])),
            int(cache[place - 1] + part * (cache[place] - cache[place - 1])),
        )

    def next_change(self, when: float) -> float:
        """Return when memory changes next: ``when`` itself on a slope, infinity if it does not change again."""
        for place in range(bisect_right(self._times, when), len(self._times)):
            before = (self._programs[place - 1], self._cache[place - 1])
            if (self._programs[place], self._cache[place]) != before:
                return max(when, self._times[place - 1])
        return float("inf")

    def to(self, seconds: float, programs: float, cache: float = 0.0) -> None:
        """Go to these sizes within ``seconds``."""
        if len(self._times) >= _MOST_KNOTS:
            raise UsageError(f"a machine without pages has at most {_MOST_KNOTS} changes of its memory")
        self._times.append(self._times[-1] + max(seconds, 1e-6))
        self._programs.append(programs)
        self._cache.append(cache)


def demand_of(workloads: Sequence[Workload], free_bytes: int, seed: int) -> Demand:
    """Return what the workloads need, one after the other, on a machine that has ``free_bytes`` for them.

    Raises:
        UsageError: a workload has no curve (a trace).
    """
    chance = random.Random(seed)
    demand = Demand()
    for workload in workloads:
        if not demand.ends:
            break
        factors = chance.uniform(1 - SPREAD, 1 + SPREAD), chance.uniform(1 - SPREAD, 1 + SPREAD)
        _add(demand, workload, free_bytes, *factors)
    return demand


def _add(demand: Demand, workload: Workload, free_bytes: int, larger: float, longer: float) -> None:
    if isinstance(workload, Idle):
        demand.ends = workload.seconds > 0
        demand.to(workload.seconds * longer, 0)
    elif isinstance(workload, Memhog):
        size = (workload.size or free_bytes * 0.9) * larger
        for _ in range(workload.repeat):
            demand.to(size / (workload.rate or FASTEST), size)
            demand.to(workload.hold * longer, size)
            demand.to(0, 0)
            demand.to(workload.rest * longer, 0)
    elif isinstance(workload, PageCacheUser):
        _add_cache(demand, workload, free_bytes, larger, longer)
    elif isinstance(workload, Churn):
        size = (workload.size or free_bytes // 2) * larger
        demand.to(0, size)
        demand.to(workload.seconds * longer, size)
        demand.to(0, 0)
    elif isinstance(workload, PageFault):
        size = workload.size * workload.tasks * larger
        for _ in range(workload.repeat):
            demand.to(size / (workload.rate or FASTEST), size)
            demand.to(0, 0)
    elif isinstance(workload, Build):
        _add_build(demand, workload, free_bytes, larger, longer)
    else:
        raise UsageError("a machine of kind coarse cannot replay a trace")


def _add_cache(demand: Demand, workload: PageCacheUser, free_bytes: int, larger: float, longer: float) -> None:
    size = (workload.size or free_bytes * 0.8) * larger
    kept = 0.0
    for _ in range(workload.repeat):
        demand.to((size - kept) / (workload.rate or FASTEST), 0, size)
        demand.to(workload.hold * longer, 0, size)
        kept = size * (1 - workload.drop / 100)
        demand.to(0, 0, kept)
        demand.to(workload.rest * longer, 0, kept)
    demand.to(0, 0)


def _add_build(demand: Demand, workload: Build, free_bytes: int, larger: float, longer: float) -> None:
    # Half of the size is what has been compiled, which grows; the other half is compilers, then the linker.
    half = (workload.size or free_bytes // 2) * larger / 2
    seconds = workload.seconds * longer / workload.steps
    for step in range(1, workload.steps + 1):
        kept = half * step / workload.steps
        demand.to(seconds * _COMPILING, kept + half * _COMPILERS_SHARE)
        demand.to(0, kept)
        demand.to(seconds * (1 - _COMPILING), kept + half * step / workload.steps)
        demand.to(0, kept)
    demand.to(0, 0)
