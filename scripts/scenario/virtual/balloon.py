"""The balloon of a guest in virtual time: the kernel driver's steps, and a device that takes time for each message."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from guest.balloon.balloon import Balloon, OutOfPuff, Step, TellHost
from guest.mm.vmscan import VmScan
from guest.simulation import Simulation
from host.control.guest_ram import RESERVE_BYTES as LEAST_GUEST_BYTES
from host.control.reclaim import RESERVE_BYTES, RESERVE_PART
from host.control.reclaim_progress import LONGEST, STALL
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonFeature, BalloonQueue

_FEATURES: Final = 1 << BalloonFeature.DEFLATE_ON_OOM


def bounded_size(memory_bytes: int, size: int) -> int:
    """Return the balloon of at most ``size`` bytes, in whole pages, that leaves a guest the daemon's reserve."""
    most = memory_bytes - min(LEAST_GUEST_BYTES, memory_bytes // 2)
    return max(0, min(size, most)) // PAGE_SIZE * PAGE_SIZE


def reserve_of(total_bytes: int) -> int:
    """Return what a reclaim leaves a guest of ``total_bytes`` free."""
    return max(RESERVE_BYTES, total_bytes // RESERVE_PART)


class VirtualBalloon:
    """One balloon. It inflates and deflates as the driver does: pages of 4 KiB, 256 in a message, never below the
    guest's watermarks; when the guest runs out of memory it gives pages back (DEFLATE_ON_OOM, as the daemon offers).

    A reclaim is the daemon's ``inflate``: it inflates by what is free less a reserve, then asks for the target again.
    It ends early when the driver makes no progress for :data:`STALL` seconds. ``on_reclaimed`` is told the bytes that
    the host got back by it.
    """

    def __init__(self, simulation: Simulation, memory_bytes: int, on_reclaimed: Callable[[int], None]) -> None:
        self._simulation = simulation
        self._memory_bytes = memory_bytes
        self._on_reclaimed = on_reclaimed
        self._balloon = Balloon(simulation.allocator, self._work)
        self._busy = False
        self._reclaim_begin: float | None = None
        self._progress = (0.0, 0)
        self._reclaim_target = 0
        self._discarded_before = 0
        self.target_bytes = 0
        """What was asked for, not counting a reclaim."""
        self.device_seconds = 0.0
        """Processor time of the device."""
        self.discarded_pages = 0
        """Pages that the host got back by inflating."""
        self._balloon.attach(_FEATURES, 0, 0)
        _deflate_on_oom(simulation.allocator.vmscan, self._balloon)

    @property
    def size(self) -> int:
        """What the balloon holds, in bytes."""
        return self._balloon.num_pages * PAGE_SIZE

    def pfns(self) -> Iterable[int]:
        """Return the page frame numbers of what it holds."""
        return self._balloon.pfns()

    @property
    def present_pages(self) -> int:
        """How many pages of it the host has not taken yet."""
        host = self._simulation.host
        return sum(host.count_present(pfn, 1) for pfn in self._balloon.untold_pfns)

    def set_target(self, size: int) -> None:
        """Ask for a balloon of ``size`` bytes, bounded as the daemon bounds it. A reclaim under way ends."""
        self.target_bytes = bounded_size(self._memory_bytes, size)
        self._end_reclaim()
        self._balloon.set_target(self.target_bytes // PAGE_SIZE)

    def reclaim(self, size: int | None, free_bytes: int, total_bytes: int) -> bool:
        """Begin to reclaim at most ``size`` bytes of the guest's ``free_bytes``; return whether there was any to gain.

        One that is under way goes on as it is.
        """
        spare = free_bytes - reserve_of(total_bytes)
        if size is not None:
            spare = min(spare, size)
        pages = self._balloon.num_pages + spare // PAGE_SIZE
        if self._reclaim_begin is not None or spare < PAGE_SIZE or pages * PAGE_SIZE <= self.target_bytes:
            return False
        now = self._simulation.now
        self._reclaim_begin, self._reclaim_target = now, pages
        self._progress = (now, self._balloon.num_pages)
        self._discarded_before = self.discarded_pages
        self._balloon.set_target(pages)
        return True

    def _end_reclaim(self) -> None:
        if self._reclaim_begin is None:
            return
        self._reclaim_begin = None
        self._on_reclaimed((self.discarded_pages - self._discarded_before) * PAGE_SIZE)
        self._balloon.set_target(self.target_bytes // PAGE_SIZE)

    def _check_reclaim(self) -> None:
        if self._reclaim_begin is None:
            return
        now, pages = self._simulation.now, self._balloon.num_pages
        if pages > self._progress[1]:
            self._progress = (now, pages)
        stalled = now - self._progress[0] >= STALL or now - self._reclaim_begin >= LONGEST
        if pages >= self._reclaim_target or stalled:
            self._end_reclaim()

    def _work(self) -> None:
        # Called from inside an allocation too (DEFLATE_ON_OOM): the next step is taken as an event of its own.
        if not self._busy:
            self._busy = True
            self._simulation.at(self._simulation.now, self._next)

    def _next(self) -> None:
        self._check_reclaim()
        step = self._balloon.next_step()
        if step is None:
            self._busy = False
            return
        self._simulation.at(self._simulation.now + self._seconds(step), partial(self._finish, step))

    def _seconds(self, step: Step) -> float:
        if isinstance(step, OutOfPuff):
            return step.seconds
        if not isinstance(step, TellHost):
            return 0.0
        cost = self._simulation.cost
        if step.queue is BalloonQueue.INFLATE:
            ranges = list(_runs(step.pfns))
            present = sum(self._simulation.host.count_present(pfn, pages) for pfn, pages in ranges)
            seconds = cost.seconds(len(ranges), present)
        else:
            seconds = cost.per_report
        self.device_seconds += seconds
        return seconds

    def _finish(self, step: Step) -> None:
        if isinstance(step, TellHost) and step.queue is BalloonQueue.INFLATE:
            host = self._simulation.host
            before = host.present_pages
            for pfn, pages in _runs(step.pfns):
                host.discard(pfn, pages)
            self.discarded_pages += before - host.present_pages
        self._balloon.done(step)
        self._next()


def _deflate_on_oom(vmscan: VmScan, balloon: Balloon) -> None:
    vmscan.on_out_of_memory = lambda _order, _migratetype: balloon.out_of_memory() > 0


def _runs(pfns: Iterable[int]) -> Iterable[tuple[int, int]]:
    # Consecutive pages as (first, number of pages).
    first = last = -2
    for pfn in sorted(pfns):
        if pfn != last + 1:
            if last >= 0:
                yield first, last + 1 - first
            first = pfn
        last = pfn
    if last >= 0:
        yield first, last + 1 - first
