"""Which differences between variants are larger than the spread over seeds.

All variants are played with the same seeds, so each seed gives one difference to the first variant. Their mean counts
as a difference if it is further from zero than chance explains at 95 %: Student's t test of pairs.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.scenario.score import Score

MEASURES: Final[Mapping[str, str]] = {
    "host_gib_minutes": "GiB*min",
    "stall_seconds": "stall s",
    "refaulted_gib": "refaulted GiB",
    "oom_events": "OOM",
    "control_actions": "actions",
    "reclaim_cpu_seconds": "CPU s",
}
"""What of a score is compared, and its column. Less is better in each."""

# fmt: off
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""The 97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom."""

_T_OF_MORE: Final = ((120, 1.980), (60, 2.000), (40, 2.021))
"""Degrees of freedom from which on a quantile is used; between two of them the larger one, to be on the safe side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One measure of one variant over the seeds. ``difference`` is that of the means to the first variant, and
    ``is_different`` whether it is larger than the spread over the seeds."""

    mean: float
    deviation: float
    difference: float
    is_different: bool


def measure(score: Score, name: str) -> float:
    """Return one measure of a score."""
    if name == "refaulted_gib":
        return score.refaulted_bytes / (1 << 30)
    return float(getattr(score, name))


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def quantile(freedom: int) -> float:
    """Return how many standard errors a mean may be away by chance (95 %, two-sided), for ``freedom`` degrees of
    freedom, at least 1."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return next((value for least, value in _T_OF_MORE if freedom >= least), _T[-1])


def spread(scores: Sequence[Score], first: Sequence[Score], name: str) -> Spread:
    """Return the spread of one measure. ``scores`` and ``first`` are of the same seeds, in the same order."""
    values = [measure(score, name) for score in scores]
    pairs = [value - measure(other, name) for value, other in zip(values, first, strict=True)]
    difference = statistics.mean(pairs)
    error = deviation(pairs) / math.sqrt(len(pairs))
    # With a single seed there is no spread to compare with.
    is_different = len(pairs) > 1 and abs(difference) > max(quantile(len(pairs) - 1) * error, 1e-9)
    return Spread(
        mean=statistics.mean(values), deviation=deviation(values), difference=difference, is_different=is_different
    )
