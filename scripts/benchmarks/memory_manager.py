"""The memory manager alone, without processes or a device: pairs a second, what an idle reporter costs, a large boot.

What is quick is timed by the processor time of this thread, so a busy system disturbs it little; what a person waits
for (``boot-1t``, ``virtual-hour``) by the clock. Everything that is compared runs in turns within the same round.
"""

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.page_reporting import PageReporter
from guest.mm.reporting.reporters import make_reporter
from guest.simulation import DEVICE_CAPACITY, Simulation
from guest.workloads.workload_options import parse_workload
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, format_size
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result, median_ratio

PCP_PAIRS: Final = Figure(
    name="pcp-pairs",
    title="order-0 pages allocated and freed through per-CPU lists",
    unit="pairs/s",
    bar=1_000_000,
    at_least=True,
)
BUDDY_PAIRS: Final = Figure(
    name="buddy-pairs",
    title="random order-0 pages freed and allocated without per-CPU lists, 1 GiB half full of random pages",
    unit="pairs/s",
    bar=350_000,
    at_least=True,
)
ARMED: Final = tuple(
    Figure(
        name=f"armed-{name}",
        title=f"the loops of pcp-pairs and buddy-pairs with {name} registered and idle: slower by, the worse of both",
        unit="%",
        bar=3,
        at_least=False,
    )
    for name in ("boundary", "rotation", "scan")
)
WALK: Final = Figure(
    name="walk-boundary",
    title="list entries that boundary walks for each block it reports, 64 GiB of free memory against 1 GiB",
    unit="of 1 GiB",
    bar=1.1,
    at_least=False,
)
BOOT: Final = Figure(
    name="boot-1t",
    title="an allocator of 1 TiB: until all of its memory is free",
    unit="s",
    bar=5,
    at_least=False,
)
METADATA: Final = Figure(
    name="boot-1t-metadata",
    title="an allocator of 1 TiB with reporter: what they keep for each page",
    unit="bytes",
    bar=1.3,
    at_least=False,
)
VIRTUAL_HOUR: Final = Figure(
    name="virtual-hour",
    title="one virtual hour of 64 GiB with rotation, 16 GiB of churn, mean lifetime 300 s, a burst each 0.1 s",
    unit="s",
    bar=30,
    at_least=False,
)

_ZONE_PAGES: Final = GIB // PAGE_SIZE
_LARGE: Final = 64 * GIB
_SEED: Final = 1
_PASSES_MAX: Final = 1000
"""Most passes of a reporter over unused memory; more mean that it does not end."""

Loop = Callable[[], float]
"""Runs a number of pairs; returns the processor seconds that they took."""


class EmptyCalls:
    """An allocator that does nothing: what the loops themselves cost."""

    def alloc_pages(self, order: int) -> int:
        """Return the same page each time."""
        return order

    def free_pages(self, pfn: int, order: int) -> None:
        """Do nothing."""


# -- the two loops -----------------------------------------------------------------------------------------------------


def run_pairs(memory: PageAllocator | EmptyCalls, pairs: int) -> float:
    """Allocate a page and free it, ``pairs`` times; return the processor seconds."""
    alloc: Callable[[int], Any] = memory.alloc_pages
    free = memory.free_pages
    begin = time.thread_time()
    for _ in range(pairs):
        free(alloc(0), 0)
    return time.thread_time() - begin


def run_replacements(memory: PageAllocator | EmptyCalls, held: list[int], places: list[int]) -> float:
    """Free the page at each of these places of ``held`` and allocate another for it; return the processor seconds."""
    alloc: Callable[[int], Any] = memory.alloc_pages
    free = memory.free_pages
    begin = time.thread_time()
    for place in places:
        free(held[place], 0)
        held[place] = alloc(0)
    return time.thread_time() - begin


def fragmented_zone(total_pages: int) -> tuple[PageAllocator, list[int]]:
    """Return memory of which half is held in single pages at random, and the pages held, in random order."""
    allocator = PageAllocator(total_pages)
    # Not all of it: an allocation below the watermarks takes another path.
    pages = [pfn for _ in range(total_pages - total_pages // 16) if (pfn := allocator.alloc_pages(0)) is not None]
    random.Random(_SEED).shuffle(pages)
    while allocator.nr_free_pages() < total_pages // 2:
        allocator.free_pages(pages.pop(), 0)
    return allocator, pages


def _pcp_loops(pairs: int) -> tuple[PageAllocator, Loop, Loop]:
    # The memory, the loop over it, the loop over nothing.
    allocator = PageAllocator(_ZONE_PAGES, nr_cpus=1)
    return allocator, partial(run_pairs, allocator, pairs), partial(run_pairs, EmptyCalls(), pairs)


def _buddy_loops(pairs: int) -> tuple[PageAllocator, Loop, Loop]:
    allocator, held = fragmented_zone(_ZONE_PAGES)
    chance = random.Random(_SEED + 1)
    places = [chance.randrange(len(held)) for _ in range(pairs)]
    empty = partial(run_replacements, EmptyCalls(), held.copy(), places)
    return allocator, partial(run_replacements, allocator, held, places), empty


_LOOPS: Final = (_pcp_loops, _buddy_loops)


def _pairs(figure: Figure, make: Callable[[int], tuple[PageAllocator, Loop, Loop]], bench: Bench) -> Iterator[Result]:
    # The best of the rounds: other processes, above all on the other thread of the core, only slow a round down, by
    # up to a half and for seconds at a time. Rounds are long enough to have their share of everything that the memory
    # manager does now and then, such as making its dictionaries anew. The median is in the reference.
    bench.progress(figure.name)
    pairs = bench.scale.pairs
    _, loop, empty_loop = make(pairs)
    seconds: list[float] = []
    empty: list[float] = []
    for _ in range(1 + bench.scale.pair_rounds):
        seconds.append(loop())
        empty.append(empty_loop())
    median = statistics.median(seconds[1:])
    yield Result(
        figure=figure,
        value=pairs / min(seconds[1:]),
        reference=f"two empty method calls {pairs / min(empty[1:]):,.0f} pairs/s; best of {bench.scale.pair_rounds}"
        f" rounds, the median has {pairs / median:,.0f}",
    )


# -- an idle reporter --------------------------------------------------------------------------------------------------


def report_all(reporter: PageReporter) -> None:
    """Register ``reporter`` with a device that acknowledges everything at once, and run it until it is idle.

    Raises:
        BenchmarkError: it does not come to rest.
    """
    reporter.register(DEVICE_CAPACITY, 0.0, lambda: None)
    for _ in range(_PASSES_MAX):
        if reporter.due is None:
            return
        worker = reporter.process(reporter.due)
        report = next(worker, None)
        while report is not None:
            try:
                report = worker.send(True)
            except StopIteration:
                break
    raise BenchmarkError(f"{reporter.name} is not idle after {_PASSES_MAX} passes over unused memory")


def armed_seconds(reporter: PageReporter, loop: Loop, *, armed: bool) -> float:
    """Return the seconds of ``loop`` while ``reporter`` is registered and idle, or for comparison right after it was.

    So both find the caches and the lists as the same work left them. Afterwards it is not registered.

    Raises:
        BenchmarkError: the loop woke it.
    """
    report_all(reporter)
    if not armed:
        reporter.unregister()
    try:
        seconds = loop()
        if reporter.due is not None:
            raise BenchmarkError(f"{reporter.name} was to be idle, but was requested")
    finally:
        reporter.unregister()
    return seconds


def slower_by(seconds: list[float], others: list[float]) -> float:
    """Return by how many per cent the rounds of ``seconds`` are slower: the median of the ratios of each pair."""
    return 100 * (median_ratio(seconds, others) - 1)


def _armed(figure: Figure, name: str, bench: Bench) -> Iterator[Result]:
    # Short rounds on the same memory, next to each other, in changing order. The median of the ratios of pairs: a
    # disturbance spoils one ratio, and what lasts longer than a round cancels out. The best of the rounds would depend
    # on two single ones. The reference is what this method measures without a reporter on both sides.
    slower: list[float] = []
    same: list[float] = []
    for make in _LOOPS:
        allocator, loop, _ = make(bench.scale.armed_pairs)
        reporter = make_reporter(name, allocator)
        seconds: dict[str, list[float]] = {"bare": [], "again": [], "armed": []}
        loop()
        for number in range(bench.scale.armed_rounds):
            bench.progress(f"{figure.name}, round {number} of {bench.scale.armed_rounds}")
            kinds = list(seconds)
            for kind in kinds[number % 3 :] + kinds[: number % 3]:
                seconds[kind].append(armed_seconds(reporter, loop, armed=kind == "armed"))
        slower.append(slower_by(seconds["armed"], seconds["bare"]))
        same.append(slower_by(seconds["again"], seconds["bare"]))
    yield Result(
        figure=figure,
        value=max(slower),
        reference=f"per-CPU lists {slower[0]:+.2f} %, buddy lists {slower[1]:+.2f} %;"
        f" without a reporter, twice: {same[0]:+.2f} % and {same[1]:+.2f} %",
    )


# -- the walk ----------------------------------------------------------------------------------------------------------


def walked_per_block(name: str, size: int) -> float:
    """Return how many list entries a reporter walks for each block while it reports unused memory of ``size`` bytes."""
    reporter = make_reporter(name, PageAllocator(size // PAGE_SIZE))
    report_all(reporter)
    if not reporter.statistics.blocks:
        raise BenchmarkError(f"{name} found nothing to report in {format_size(size)}")
    return reporter.statistics.entries_walked / reporter.statistics.blocks


def _walk(bench: Bench) -> Iterator[Result]:
    bench.progress(WALK.name)
    small, large = (walked_per_block("boundary", size) for size in (GIB, _LARGE))
    scan_small, scan_large = (walked_per_block("scan", size) for size in (GIB, _LARGE))
    yield Result(
        figure=WALK,
        value=large / small,
        reference=f"scan {scan_large / scan_small:.1f}, from {scan_small:.2f} to {scan_large:.2f} entries a block;"
        f" boundary from {small:.2f} to {large:.2f}",
    )


# -- large and long ----------------------------------------------------------------------------------------------------


def _boot(bench: Bench) -> Iterator[Result]:
    pages = bench.scale.boot_bytes // PAGE_SIZE
    seconds: list[float] = []
    bare: list[float] = []
    for number in range(1 + bench.scale.guests):
        bench.progress(f"{BOOT.name}, round {number} of {bench.scale.guests}")
        begin = time.monotonic()
        PageAllocator(pages)
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
        bytearray(b"\x01") * pages
        bare.append(time.monotonic() - begin)
    yield Result(
        figure=BOOT,
        value=statistics.median(seconds[1:]),
        reference=f"filling a byte for each page {statistics.median(bare[1:]):.3f} s",
    )


def _metadata(bench: Bench) -> Iterator[Result]:
    bench.progress(METADATA.name)
    pages = bench.scale.boot_bytes // PAGE_SIZE
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        reporter = make_reporter("boundary", PageAllocator(pages))
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    yield Result(
        figure=METADATA,
        value=(after - before) / reporter.allocator.total_pages,
        reference=f"struct page in Linux 64 bytes; at most {(peak - before) / pages:.2f} bytes while booting",
    )


def _simulated_seconds(reporter_name: str | None, seconds: float) -> float:
    # Wall clock time, without the boot.
    allocator = PageAllocator(_LARGE // PAGE_SIZE)
    reporter = None if reporter_name is None else make_reporter(reporter_name, allocator)
    workload = parse_workload(f"churn:size=16G,seconds={seconds:g},lifetime=300,tick=0.1")
    simulation = Simulation(allocator, reporter, [workload], seed=_SEED)
    begin = time.monotonic()
    simulation.run(seconds)
    elapsed = time.monotonic() - begin
    if simulation.out_of_memory or (reporter is not None and not simulation.reports):
        raise BenchmarkError("the simulated guest ran out of memory, or reported nothing")
    return elapsed


def _virtual_hour(bench: Bench) -> Iterator[Result]:
    # Once: it takes longest, and each run is identical.
    seconds = bench.scale.virtual_seconds
    bench.progress(f"{VIRTUAL_HOUR.name}, without a reporter")
    bare = _simulated_seconds(None, seconds)
    bench.progress(f"{VIRTUAL_HOUR.name}, rotation")
    value = _simulated_seconds("rotation", seconds)
    yield Result(
        figure=VIRTUAL_HOUR,
        value=value,
        reference=f"without a reporter {bare:.1f} s; {seconds / value:.0f} times as fast as real time",
    )


BENCHMARKS: Final = (
    Benchmark(figures=(PCP_PAIRS,), measure=partial(_pairs, PCP_PAIRS, _pcp_loops)),
    Benchmark(figures=(BUDDY_PAIRS,), measure=partial(_pairs, BUDDY_PAIRS, _buddy_loops)),
    *(
        Benchmark(figures=(figure,), measure=partial(_armed, figure, figure.name.removeprefix("armed-")))
        for figure in ARMED
    ),
    Benchmark(figures=(WALK,), measure=_walk),
    Benchmark(figures=(BOOT,), measure=_boot),
    Benchmark(figures=(METADATA,), measure=_metadata),
    Benchmark(figures=(VIRTUAL_HOUR,), measure=_virtual_hour),
)
