"""Whether a guest is idle, by what changed in its statistics from one observation to the next.

The processor time of a virtual machine is not among what a balloon sees. Faults, swap traffic and the amount of free
and cached memory are, and a guest in which none of these moves does nothing that needs memory.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from host.policy.observation import VmView
from protocol.units import MIB

MINOR_FAULTS: Final = 200.0
"""Minor faults a second of a guest that is idle, at most. A shell that starts one program has as many."""

MOVED_SHARE: Final = 0.005
MOVED_BYTES: Final = 8 * MIB
"""Free memory, less the page cache it could be taken from, that moves in an idle guest between two observations: this
share of its memory, or these bytes if they are more."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in one guest since the last observation. ``seconds`` are those between both."""

    seconds: float
    minor_faults: int
    major_faults: int
    swapped_bytes: int
    refaulted_bytes: int
    stall_seconds: float
    moved_bytes: int
    """By how much what is in use changed, up or down; the balloon's own change is not counted."""
    is_idle: bool


def activity(before: VmView, after: VmView, seconds: float) -> Activity | None:
    """Return what happened in a guest between two views of it, None where that cannot be told: it has no statistics, or
    its counters went back, so that it is another one."""
    if seconds <= 0 or before.free_bytes is None or after.free_bytes is None:
        return None
    minor = (after.minor_faults or 0) - (before.minor_faults or 0)
    major = (after.major_faults or 0) - (before.major_faults or 0)
    swapped = _swapped(after) - _swapped(before)
    refaulted = after.refaulted_bytes - before.refaulted_bytes
    stalled = after.stall_seconds - before.stall_seconds
    if min(minor, major, swapped, refaulted) < 0 or stalled < 0:
        return None
    moved = abs(_in_use(after) - _in_use(before))
    still = moved <= max(MOVED_BYTES, MOVED_SHARE * after.memory_bytes)
    idle = still and major == 0 and swapped == 0 and minor <= MINOR_FAULTS * seconds
    return Activity(seconds, minor, major, swapped, refaulted, stalled, moved, idle)


def _swapped(vm: VmView) -> int:
    return (vm.swapped_in_bytes or 0) + (vm.swapped_out_bytes or 0)


def _in_use(vm: VmView) -> int:
    # Page cache is left out: a balloon that grows takes it, which is not the guest's doing.
    return vm.memory_bytes - vm.balloon_bytes - (vm.free_bytes or 0) - (vm.cache_bytes or 0)


class IdleTime:
    """Keeps the last view of each guest and says for how long it has been idle."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, VmView]] = {}
        self._since: dict[str, float] = {}

    def update(self, vm: VmView, now: float) -> tuple[float, Activity | None]:
        """Take the next view of ``vm`` at ``now``. Return the seconds for which it has been idle, and what happened
        since the last view, None if that cannot be told."""
        seconds, before = self._last.get(vm.name, (now, vm))
        self._last[vm.name] = (now, vm)
        found = activity(before, vm, now - seconds)
        if found is None or not found.is_idle:
            self._since[vm.name] = now
        return now - self._since.setdefault(vm.name, now), found

    def keep(self, names: Set[str]) -> None:
        """Forget every guest that is not among ``names``."""
        self._last = {name: view for name, view in self._last.items() if name in names}
        self._since = {name: since for name, since in self._since.items() if name in names}
