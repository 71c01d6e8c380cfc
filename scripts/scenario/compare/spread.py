"""Which differences between variants are larger than the spread over seeds.

All variants are played with the same seeds, so each seed gives one difference to the first variant. Their mean counts
as a difference if it is more than twice its standard error away from zero (about 95 %).
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

STANDARD_ERRORS: Final = 2.0


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


def spread(scores: Sequence[Score], first: Sequence[Score], name: str) -> Spread:
    """Return the spread of one measure. ``scores`` and ``first`` are of the same seeds, in the same order."""
    values = [measure(score, name) for score in scores]
    pairs = [value - measure(other, name) for value, other in zip(values, first, strict=True)]
    difference = statistics.mean(pairs)
    error = deviation(pairs) / math.sqrt(len(pairs))
    # With a single seed there is no spread to compare with.
    is_different = len(pairs) > 1 and abs(difference) > max(STANDARD_ERRORS * error, 1e-9)
    return Spread(
        mean=statistics.mean(values), deviation=deviation(values), difference=difference, is_different=is_different
    )
