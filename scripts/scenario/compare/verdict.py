"""How one policy stands against all others in a scenario, over the same seeds.

A policy that lets programs wait, or be killed, saves memory too. So one counts only if it costs no more stall time and
no more OOM events than reporting alone: a difference is one that is larger than the spread over the seeds
(:mod:`scripts.scenario.compare.spread`). Among those that count, fewest GiB*minutes win.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from scripts.scenario.compare.spread import spread
from scripts.scenario.score import Score

REPORTING: Final = "reporting"
OURS: Final = "steady"

MEMORY: Final = "host_gib_minutes"
COSTS: Final = ("stall_seconds", "oom_events")


class Standing(Enum):
    """How the policy stands."""

    FEWEST = "fewest"
    """It keeps less of the host's memory than every other one that counts."""
    EQUAL = "as few as any"
    """One that counts, or several, do as well: the difference is not larger than the spread."""
    MORE = "more"
    """One that counts keeps less."""
    COSTS = "costs"
    """It costs more stall time or OOM events than reporting alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``others`` are those that do as well (EQUAL) or better (MORE), the best first; ``left_out`` do not count."""

    standing: Standing
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it for a table."""
        if self.standing in (Standing.FEWEST, Standing.COSTS):
            return str(self.standing.value)
        names = ", ".join(self.others)
        return f"as few as {names}" if self.standing is Standing.EQUAL else f"more than {names}"


def counts(scores: Sequence[Score], alone: Sequence[Score]) -> bool:
    """Whether a policy costs no more stall time and no more OOM events than reporting alone, of the same seeds."""
    for name in COSTS:
        cost = spread(scores, alone, name)
        # With one seed there is no spread, and each difference counts.
        if cost.difference > 0 and (cost.is_different or len(scores) == 1):
            return False
    return True


def verdict(scores: Mapping[str, Sequence[Score]], policy: str = OURS) -> Verdict:
    """Return how ``policy`` stands. ``scores`` are those of every policy, reporting alone among them, of the same
    seeds in the same order."""
    alone, own = scores[REPORTING], scores[policy]
    left_out = tuple(name for name in scores if not counts(scores[name], alone))
    if policy in left_out:
        return Verdict(standing=Standing.COSTS, left_out=left_out)
    better, equal = [], []
    for name, other in scores.items():
        if name == policy or name in left_out:
            continue
        found = spread(other, own, MEMORY)
        if not found.is_different:
            equal.append((found.difference, name))
        elif found.difference < 0:
            better.append((found.difference, name))
    if better:
        return Verdict(standing=Standing.MORE, others=_names(better), left_out=left_out)
    if equal:
        return Verdict(standing=Standing.EQUAL, others=_names(equal), left_out=left_out)
    return Verdict(standing=Standing.FEWEST, left_out=left_out)


def _names(found: list[tuple[float, str]]) -> tuple[str, ...]:
    return tuple(name for _, name in sorted(found))
