"""The host's memory in virtual time: a budget for all machines together, swap, and the OOM killer.

Model. The budget is a memory cgroup's: guest memory is shared memory, which the kernel cannot drop, only swap out. A
page that a guest touches is charged at once. When the budget does not suffice,

1. pages are swapped out, as long as there is swap: from the machine that has touched no new page for the longest time,
   the lowest addresses first, at :data:`SWAP_BYTES_PER_SECOND`; the machine that wanted the memory waits for that;
2. then the OOM killer ends a machine, and takes all its memory: the largest of those marked expendable, otherwise the
   largest of all.

Stall time is what a guest's programs wait for memory: swapping out, swapping in again, and :data:`REFAULT_SECONDS` for
each page that the host has to provide again after it was given back. The first touch of a page costs the same with
every policy, and is not counted. Waiting delays the machine's workloads by as much. Reading a page in order to verify
it costs nothing: no real guest does it.
"""

from collections.abc import Callable
from typing import Final, Protocol

from guest.simulation import HostMemory
from protocol.memory import PAGE_SIZE
from protocol.units import MIB

REFAULT_SECONDS: Final = 3e-6 + PAGE_SIZE / 10e9
"""Leaving the guest and coming back, and clearing the page at 10 GB a second: assumed, not measured."""

SWAP_BYTES_PER_SECOND: Final = 28e6
"""Nitesh Lal's third memhog of July 2019 took about 130 s longer for 3.7 GB in swap."""

_PRESENT: Final = 1
_SWAPPED: Final = 4
_SWAP_BATCH: Final = 512


class Tenant(Protocol):
    """A machine, as the host's memory management sees it."""

    name: str
    expendable: bool
    last_touch: float
    """When it last got a page."""

    @property
    def resident_bytes(self) -> int:
        """What the host holds for it."""

    def swap_out(self, wanted_bytes: int) -> int:
        """Move memory of it to swap; return how many bytes, 0 where nothing can be."""

    def kill(self, reason: str) -> None:
        """End it. Its memory is released here."""


class KilledError(Exception):
    """The OOM killer has ended the machine that was about to get memory."""


class HostBudget:
    """The memory that all machines have together. ``on_kill`` is told the machine and why it was killed."""

    def __init__(self, limit_bytes: int, swap_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.swap_bytes = swap_bytes
        self.used_bytes = 0
        self.swapped_bytes = 0
        self.peak_bytes = 0
        self.now = 0.0
        """The time of the run, which its owner sets."""
        self.on_kill: Callable[[Tenant, str], None] = lambda tenant, reason: tenant.kill(reason)
        self.tenants: list[Tenant] = []

    def claim(self, tenant: Tenant, size: int) -> float:
        """Charge ``size`` bytes to ``tenant``; return the seconds that it waits for them.

        Raises:
            KilledError: it was killed for them.
        """
        seconds = 0.0
        over = self.used_bytes + size - self.limit_bytes
        if over > 0:
            if self.swapped_bytes < self.swap_bytes:
                seconds = self._swap_out(tenant, over) / SWAP_BYTES_PER_SECOND
            self._kill_for(tenant, size)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return seconds

    def release(self, size: int) -> None:
        """Take back ``size`` bytes."""
        self.used_bytes -= size

    def _swap_out(self, tenant: Tenant, over: int) -> int:
        # The machine that wants the memory comes last: it is the one that is active.
        done = 0
        for victim in sorted(self.tenants, key=lambda other: (other is tenant, other.last_touch)):
            wanted = min(over - done, self.swap_bytes - self.swapped_bytes)
            if wanted <= 0:
                break
            moved = victim.swap_out(wanted)
            self.swapped_bytes += moved
            self.used_bytes -= moved
            done += moved
        return done

    def _kill_for(self, tenant: Tenant, size: int) -> None:
        while self.used_bytes + size > self.limit_bytes:
            if not self.tenants:
                raise KilledError
            victim = max(self.tenants, key=lambda other: (other.expendable, other.resident_bytes))
            used = f"the machines use {self.used_bytes / MIB:.1f} of {self.limit_bytes / MIB:.1f} MiB"
            self.on_kill(victim, f"out of memory: {used}, and {tenant.name} needs {size / MIB:.3g} MiB more")
            if victim is tenant:
                raise KilledError


class SharedMemory(HostMemory):
    """The pages of one guest on a host with a budget. ``tenant`` is charged for them."""

    def __init__(self, end_pfn: int, budget: HostBudget, tenant: Tenant) -> None:
        super().__init__(end_pfn)
        self._budget = budget
        self._tenant = tenant
        self.swapped_pages = 0
        self.stall_seconds = 0.0
        """Time that the guest's programs have waited for pages of the host."""
        self._untold = 0.0
        self._cursor = 0

    def take_stall(self) -> float:
        """Return the seconds of waiting since the last call."""
        seconds, self._untold = self._untold, 0.0
        return seconds

    def fill(self, pfn: int, pages: int, stamp: int) -> None:
        """Touch the pages; those that are not present are charged to the tenant."""
        missing = pages - self._pages.count(_PRESENT, pfn, pfn + pages)
        if not missing:
            return
        waited = self._budget.claim(self._tenant, missing * PAGE_SIZE)
        swapped = self._pages.count(_SWAPPED, pfn, pfn + pages) if self.swapped_pages else 0
        before = self.refaults
        super().fill(pfn, pages, stamp)
        self._tenant.last_touch = self._budget.now
        if swapped:
            self._forget_swap(swapped)
            waited += swapped * PAGE_SIZE / SWAP_BYTES_PER_SECOND
        waited += (self.refaults - before) * REFAULT_SECONDS
        self.stall_seconds += waited
        self._untold += waited

    def count_corrupted(self, pfn: int, pages: int, stamp: int) -> int:
        """Return how many of these pages were lost; those in swap are not."""
        lost = super().count_corrupted(pfn, pages, stamp)
        return lost - self._pages.count(_SWAPPED, pfn, pfn + pages) if lost and self.swapped_pages else lost

    def discard(self, pfn: int, pages: int) -> None:
        """Take the memory of these pages away, that in swap too."""
        before = self.present_pages
        if self.swapped_pages and (swapped := self._pages.count(_SWAPPED, pfn, pfn + pages)):
            self._pages[pfn : pfn + pages] = self._pages[pfn : pfn + pages].replace(b"\4", b"\2")
            self._forget_swap(swapped)
        super().discard(pfn, pages)
        self._budget.release((before - self.present_pages) * PAGE_SIZE)

    def swap_out(self, wanted_pages: int) -> int:
        """Move up to about ``wanted_pages`` pages to swap, from the lowest address on; return how many."""
        moved = 0
        if self.present_pages == 0:
            return 0
        while moved < wanted_pages:
            pfn = self._pages.find(_PRESENT, self._cursor)
            if pfn < 0:
                if self._cursor == 0:
                    break
                self._cursor = 0
                continue
            end = min(pfn + min(_SWAP_BATCH, wanted_pages - moved), len(self._pages))
            part = self._pages[pfn:end]
            count = part.count(_PRESENT)
            self._pages[pfn:end] = part.replace(b"\1", b"\4")
            self.present_pages -= count
            self.swapped_pages += count
            moved += count
            self._cursor = end
        return moved

    def _forget_swap(self, pages: int) -> None:
        self.swapped_pages -= pages
        self._budget.swapped_bytes -= pages * PAGE_SIZE

    def release_all(self) -> None:
        """The machine has ended: give everything back."""
        self._budget.release(self.present_pages * PAGE_SIZE)
        self._budget.swapped_bytes -= self.swapped_pages * PAGE_SIZE
        self.present_pages = self.swapped_pages = 0
