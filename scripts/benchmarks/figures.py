"""A figure is a promise with a bar; a result meets the bar or does not."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.units import GIB, MIB


class BenchmarkError(BalloonError):
    """A measurement that failed, or whose conditions were not met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One promise: ``name`` for the command line, ``title`` for people, and the bar in ``unit``."""

    name: str
    title: str
    unit: str
    bar: float
    at_least: bool

    def is_met_by(self, value: float, uncertainty: float = 0.0) -> bool:
        """Return whether ``value``, give or take ``uncertainty``, meets the bar."""
        return value + uncertainty >= self.bar if self.at_least else value - uncertainty <= self.bar

    @property
    def bar_text(self) -> str:
        """The bar as text, for example ``">= 0.95"``."""
        return f"{'>=' if self.at_least else '<='} {self.bar:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured for ``figure``. ``reference`` names what the value is compared with, and its value.

    ``uncertainty`` is stated where the promise is that two things are equal, since one that they keep would else be
    broken in every second run: the value lies that far to either side with 95 % confidence.
    """

    figure: Figure
    value: float
    reference: str
    uncertainty: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the bar is met."""
        return self.figure.is_met_by(self.value, self.uncertainty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much to measure. Sizes are bytes; ``rounds`` do not include the first, which warms the memory up.

    ``pairs`` of allocations and frees make one of ``pair_rounds``, ``armed_pairs`` one of ``armed_rounds``.
    ``machines`` idle machines make a pool, ``crowd`` a large one.
    """

    rounds: int
    touched_bytes: int
    interference_bytes: int
    freed_bytes: int
    round_trips: int
    interference_samples: int
    machines: int
    idle_seconds: float
    guests: int
    pairs: int
    pair_rounds: int
    armed_pairs: int
    armed_rounds: int
    boot_bytes: int
    virtual_seconds: float
    kills: int
    crowd: int
    vm_workers: int
    many_machines: int
    many_seconds: float
    pool_settle_seconds: float
    pool_idle_seconds: float
    starts: int


FULL: Final = Scale(
    rounds=9,
    touched_bytes=512 * MIB,
    interference_bytes=1024 * MIB,
    freed_bytes=1024 * MIB,
    round_trips=3000,
    interference_samples=3000,
    machines=200,
    idle_seconds=2.0,
    guests=5,
    pairs=100_000,
    pair_rounds=20,
    armed_pairs=5_000,
    armed_rounds=400,
    boot_bytes=1024 * GIB,
    virtual_seconds=3600.0,
    kills=40,
    crowd=1000,
    vm_workers=8,
    many_machines=64,
    many_seconds=0.5,
    pool_settle_seconds=12.0,
    pool_idle_seconds=6.0,
    starts=15,
)
QUICK: Final = Scale(
    rounds=1,
    touched_bytes=32 * MIB,
    interference_bytes=256 * MIB,
    freed_bytes=256 * MIB,
    round_trips=50,
    interference_samples=20,
    machines=5,
    idle_seconds=0.2,
    guests=1,
    pairs=1000,
    pair_rounds=3,
    armed_pairs=1000,
    armed_rounds=3,
    boot_bytes=16 * GIB,
    virtual_seconds=60.0,
    kills=1,
    crowd=6,
    vm_workers=1,
    many_machines=2,
    many_seconds=0.05,
    pool_settle_seconds=0.0,
    pool_idle_seconds=0.05,
    starts=1,
)
"""Runs everything once, in seconds. The values have no meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The parameters of every measurement: how much to measure, a directory for files, and how to report progress.

    ``bare_loop`` starts the reference: a process that punches holes and does nothing else (:mod:`.bare_loop`);
    ``bare_language`` is what it is written in.
    """

    scale: Scale
    directory: Path
    bare_loop: tuple[str, ...]
    bare_language: str
    progress: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A measurement, and the figures that it yields in this order."""

    figures: tuple[Figure, ...]
    measure: Callable[[Bench], Iterator[Result]]


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least ``percent`` per cent of the samples do not exceed (nearest rank).

    Raises:
        ValueError: there are no samples, or ``percent`` is not above 0 and at most 100.
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples")
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


def median_uncertainty(samples: Sequence[float]) -> float:
    """Return the 95 % confidence interval of the median of ``samples``, as a distance from it.

    Source: the interval between the order statistics of rank n/2 -+ 0.98 sqrt(n), which supposes no distribution.
    """
    ranked = sorted(samples)
    reach = 0.98 * math.sqrt(len(ranked))
    low, high = math.floor(len(ranked) / 2 - reach), math.ceil(len(ranked) / 2 + reach)
    median = statistics.median(ranked)
    return max(median - ranked[max(low, 0)], ranked[min(high, len(ranked) - 1)] - median)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of each pair, so that a disturbed round counts as one round only."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))
