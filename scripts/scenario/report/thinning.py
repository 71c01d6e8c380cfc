"""What of a long run goes into a page: moments that keep the peaks, and as many events as a person reads."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

MOMENTS_MOST: Final = 600
"""Moments of the time axis: a screen has hardly more columns."""

EVENTS_MOST: Final = 800

ALWAYS: Final = frozenset(
    {"started", "finished", "failed", "oom_killed", "out_of_memory", "corrupted", "queue_stopped"}
)
"""Events that tell how a run went. Others are left out kind by kind, where there are too many."""

NEVER: Final = frozenset({"statistics", "memory"})
"""Events that are samples: the page has them as curves."""


def chosen_times(used: Sequence[tuple[float, int]], most: int = MOMENTS_MOST) -> list[float]:
    """Return at most ``most`` of the moments, in order, from (time, bytes that the host held).

    The first and the last are kept, and of each stretch in between the moment when the host held most. All series are
    read at the same moments, so what adds up in a sample adds up in the page.
    """
    if len(used) <= most:
        return [t for t, _ in used]
    inner, buckets = used[1:-1], most - 2
    bounds = [index * len(inner) // buckets for index in range(buckets + 1)]
    stretches = (inner[begin:end] for begin, end in pairwise(bounds))
    return [used[0][0], *(max(stretch, key=lambda moment: moment[1])[0] for stretch in stretches), used[-1][0]]


def chosen_events(
    events: Iterable[Mapping[str, Any]], shown: Container[str], most: int = EVENTS_MOST
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """Return the events for the page, and how many were left out by name.

    Where there are too many, those of machines that are not ``shown`` are left out first. Then whole kinds, the most
    frequent first, because a part of them would mislead.
    """
    found = list(events)
    all_counts = Counter(str(event["event"]) for event in found)
    if len(found) > most:
        found = [event for event in found if event.get("vm") is None or event["vm"] in shown]
    kept, left_out = _chosen_kinds(found, most)
    others = all_counts - Counter(str(event["event"]) for event in found)
    return kept, dict(Counter(left_out) + others)


def _chosen_kinds(found: list[Mapping[str, Any]], most: int) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    counts = Counter(str(event["event"]) for event in found)
    left_out = {name: counts[name] for name in sorted(NEVER & counts.keys())}
    total = len(found) - sum(left_out.values())
    for name, count in counts.most_common():
        if total <= most:
            break
        if name not in ALWAYS | NEVER:
            left_out[name] = count
            total -= count
    kept = [event for event in found if event["event"] not in left_out]
    for event in kept[most:]:
        name = str(event["event"])
        left_out[name] = left_out.get(name, 0) + 1
    return kept[:most], left_out


def thinned_rounds(rounds: Sequence[float], sizes: Mapping[float, int], most: int) -> list[float]:
    """Return the moments of maps that fit into ``most`` characters together: every second one, and so on."""
    kept = list(rounds)
    while len(kept) > 1 and sum(sizes[t] for t in kept) > most:
        kept = kept[::2]
    return kept
