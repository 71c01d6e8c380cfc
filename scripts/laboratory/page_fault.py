"""page_fault1 and page_fault2 with reporting off and on: what the loss is made of, in virtual time.

Calibrated: how long a task needs for a page that the host has, from the published baseline of the same test. Predicted:
how often a page has to be faulted in from the host again because the reporter took it, and what that costs. See
``FaultCost`` for what is assumed, and the notes of the outcome for what is left out.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from guest.machine import Machine
from guest.mm.errors import CorruptionError
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import PAGEBLOCK_ORDER
from guest.mm.reporting.reporters import make_reporter
from guest.simulation import DeviceCost, HostMemory, Simulation
from guest.workloads.page_fault import REGION
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table, least, most, summarise
from scripts.laboratory.published import WILL_IT_SCALE
from scripts.laboratory.style import ERRORS, SOURCE_LOOKS, caption, error_bars

MEMORY: Final = 32 * GIB
"""Of the guest, as in v13 to v17."""
TESTS: Final = {"page_fault1": PAGEBLOCK_ORDER, "page_fault2": 0}
"""The order that each allocates."""
SERIES: Final = {"boundary": "v12", "rotation": "v17"}
"""Whose baseline calibrates a reporter, and whose result it is put next to."""

SECONDS: Final = {
    ("page_fault1", 1): {"boundary": 20.0, "rotation": 20.0},
    ("page_fault1", 16): {"boundary": 10.0, "rotation": 10.0},
    ("page_fault2", 1): {"boundary": 2.0, "rotation": 2.0},
    ("page_fault2", 16): {"boundary": 0.5, "rotation": 2.0},
}
"""Virtual seconds measured: more would take too long; passes of ``rotation`` are two seconds apart."""
_QUICK_SECONDS: Final = 0.1
SEEDS: Final = range(3)
"""Of the runs whose median is shown: a seed says how late each task begins."""
SPREAD: Final = ("pages_per_second", "change_percent", "host_faults_percent")
"""Columns that have a median, a least and a most."""
_IDLE: Final = 40.0
_WARM_UP: Final = 0.5
"""Virtual seconds: all free memory is reported; then every task has had its memory several times."""

_TURN_PAGES: Final = 1 << PAGEBLOCK_ORDER
_REGION_TURNS: Final = REGION // PAGE_SIZE // _TURN_PAGES
_RETRY: Final = 1e-3
"""A task works on 2 MiB at a time; so often a region; seconds until it retries an allocation that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultCost:
    """The host's time for a page that the guest touches and that is not backed. Assumed, not measured.

    The host backs the guest with huge pages, as Duyck's did, so a fault brings 2 MiB where all of it is missing.
    """

    exit_seconds: float = 3e-6
    """Leaving the guest, finding the page, coming back: once for 2 MiB."""
    zero_bytes_per_second: float = 10e9
    """One processor alone clearing memory."""
    slowdown: float = 1.0
    """How much longer clearing takes because other processors want the memory, too. The published baselines say how
    much slower each of 16 tasks is than one alone; that is mostly the same clearing, done by the guest."""

    def seconds(self, missing_pages: int) -> float:
        """Return the time that ``missing_pages`` pages cost, touched one after the other."""
        faults = -(-missing_pages // _TURN_PAGES)
        return faults * self.exit_seconds + missing_pages * PAGE_SIZE * self.slowdown / self.zero_bytes_per_second


DEVICES: Final = {
    "measured": DeviceCost(),
    "huge pages": DeviceCost(per_present_page=0.05e-6),
}
"""What a discard costs: this project's daemon with pages of 4 KiB in tmpfs, and an assumption for anonymous memory in
huge pages, of which freeing one takes little longer than freeing a small one."""


class Task:
    """One process: takes a region, 2 MiB at a time, touches it, frees it, begins again. Counts the pages it touched.

    ``host`` is to be set before the first step.
    """

    def __init__(self, order: int, page_seconds: float, cost: FaultCost, late: float) -> None:
        self.host: HostMemory | None = None
        self.pages = 0
        self._order = order
        self._turn_seconds = page_seconds * _TURN_PAGES
        self._cost = cost
        self._late = late

    def run(self, machine: Machine, _seed: int) -> Iterator[float]:
        """Fault and free for ever. The seconds yielded are those that the turn before has taken."""
        host = self.host
        assert host is not None
        allocate, free = machine.allocator.alloc_pages, machine.allocator.free_pages
        order = self._order
        yield self._late
        while True:
            held: list[int] = []
            for _ in range(_REGION_TURNS):
                faults = host.faults
                turn: list[int] = []
                while len(turn) < _TURN_PAGES >> order:
                    pfn = allocate(order)
                    if pfn is None:
                        yield _RETRY
                    else:
                        turn.append(pfn)
                for first, blocks in runs(turn, 1 << order):
                    host.fill(first, blocks << order, 0)
                held += turn
                yield self._turn_seconds + self._cost.seconds(host.faults - faults)
                self.pages += _TURN_PAGES
            for first, blocks in runs(held, 1 << order):
                if host.count_corrupted(first, blocks << order, 0):
                    raise CorruptionError(f"pages in use from pfn {first} were discarded")
            for pfn in held:
                free(pfn, order)


def runs(pfns: Sequence[int], block_pages: int) -> Iterator[tuple[int, int]]:
    """Yield (first pfn, blocks) for each run of blocks that follow each other, in the order given."""
    begin = 0
    for end in range(1, len(pfns) + 1):
        if end == len(pfns) or pfns[end] != pfns[end - 1] + block_pages:
            yield pfns[begin], end - begin
            begin = end


def measure(test: str, tasks: int, reporter_name: str, series: str, device: str, seconds: float, seed: int = 0) -> Row:
    """Return one row: pages faulted per virtual second, after a warm-up, and how many of them the host had to bring."""
    allocator = PageAllocator(MEMORY // PAGE_SIZE)
    reporter = None if reporter_name == "off" else make_reporter(reporter_name, allocator)
    baseline = WILL_IT_SCALE[series][test, tasks].baseline
    page_seconds = tasks / baseline
    cost = FaultCost(slowdown=WILL_IT_SCALE[series][test, 1].baseline * page_seconds)
    chance = random.Random(seed)
    region_seconds = page_seconds * _TURN_PAGES * _REGION_TURNS
    workloads = [Task(TESTS[test], page_seconds, cost, _IDLE + chance.random() * region_seconds) for _ in range(tasks)]
    simulation = Simulation(allocator, reporter, workloads, cost=DEVICES[device], sample_interval=1e9)
    for workload in workloads:
        workload.host = simulation.host
    simulation.run(_IDLE + min(_WARM_UP, 2 * seconds))
    pages, faults = sum(task.pages for task in workloads), simulation.host.faults
    simulation.run(seconds)
    pages = sum(task.pages for task in workloads) - pages
    return {
        "test": test,
        "tasks": tasks,
        "reporter": reporter_name,
        "series": series,
        "device": device,
        "virtual_seconds": seconds,
        "pages_per_second": pages / seconds,
        "change_percent": 100 * (pages / seconds / baseline - 1),
        "host_faults_percent": 100 * (simulation.host.faults - faults) / pages,
        "published_baseline": baseline,
        "published_change_percent": WILL_IT_SCALE[series][test, tasks].change_percent,
    }


def _line(row: Row) -> tuple[str, ...]:
    return (
        f"{row['test']} x{row['tasks']}",
        f"{row['reporter']} ({row['series']})",
        row["device"],
        f"{row['published_baseline']:,.0f}",
        f"{row['pages_per_second']:,.0f}",
        f"{row['host_faults_percent']:.2f} %",
        f"{row['change_percent']:+.2f} %",
        f"{row[least('change_percent')]:+.2f} to {row[most('change_percent')]:+.2f} %",
        f"{row['published_change_percent']:+.2f} %",
    )


def run(quick: bool, progress: Progress) -> Outcome:
    """Measure both tests with 1 and 16 tasks under both reporters."""
    rows: list[Row] = []
    seeds = SEEDS[:2] if quick else SEEDS
    for (test, tasks), longest in SECONDS.items():
        for reporter, series in SERIES.items():
            if quick and test == "page_fault2":
                continue
            progress(f"{test}, {tasks} task{'s' if tasks > 1 else ''}, {reporter}")
            seconds = _QUICK_SECONDS if quick else longest[reporter]
            for device in DEVICES if test == "page_fault1" else ("huge pages",):
                runs = [measure(test, tasks, reporter, series, device, seconds, seed) for seed in seeds]
                rows.append(summarise(runs, SPREAD))
    lines = [_line(row) for row in rows]
    header = (
        "test",
        "reporter",
        "discard",
        "off, pages/s",
        "on, pages/s",
        "from the host",
        "change",
        "runs",
        "published",
    )
    table = Table(title="Pages faulted per virtual second, reporting off and on", header=header, rows=tuple(lines))
    return Outcome(tables=(table,), notes=NOTES, rows=rows)


NOTES: Final = (
    "off is calibrated, not predicted: it is the published baseline, which says how long a task needs for a page.",
    "on includes: pages that the reporter took and that come back, 3 us for a fault of 2 MiB on the host and its"
    " clearing at 10 GB/s (slowed as much as the guest's own with 16 tasks); blocks that the device holds while it"
    " works: 0.7 us a page of 4 KiB (measured: this daemon, tmpfs) or 0.05 us (assumed: huge pages).",
    "on leaves out: the zone lock and the walk (see boundary-cost), the host's own locks and TLB shoot-downs between"
    " discards and faults, NUMA, per-CPU lists, the processor time of the guest's worker and of the device. So it is"
    " what host faults alone explain; published runs vary by 1 to 2 %.",
    "Measured, one process of page_fault1 and 16 of page_fault2 lost nothing under boundary: there this model takes"
    " away more than was taken in reality.",
    "on, from the host, change are the median of runs with different seeds, runs the least to the most of them: all"
    " chance there is lies in when each task begins. With one task that is next to nothing.",
    "discard is how much of that a host needs; page_fault2 is shown with huge pages only, because it takes long.",
)


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw the change that reporting makes, simulated and published, side by side."""
    on = [row for row in rows if row["reporter"] != "off" and row["device"] == "huge pages"]
    figure.suptitle("What reporting costs a program that does nothing but fault memory in and free it")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (reporter, series) in zip(panels, SERIES.items(), strict=True):
        mine = [row for row in on if row["reporter"] == reporter]
        places = range(len(mine))
        axes.bar(
            [place - 0.2 for place in places],
            [row["change_percent"] for row in mine],
            0.4,
            yerr=error_bars(mine, "change_percent"),
            error_kw=ERRORS,
            label="simulated: host faults only",
            **SOURCE_LOOKS["simulated"].of_bars(),
        )
        axes.bar(
            [place + 0.2 for place in places],
            [row["published_change_percent"] for row in mine],
            0.4,
            label="published: measured on hardware",
            **SOURCE_LOOKS["published"].of_bars(),
        )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(
            places, [f"{row['test']}\n{row['tasks']} task{'s' if row['tasks'] > 1 else ''}" for row in mine], fontsize=8
        )
        axes.set_title(f"{reporter}, the design of {series}", fontsize="medium")
        axes.grid(True, axis="y", alpha=0.3)
    panels[0].set_ylabel("pages faulted per second,\nchange against reporting off (%)")
    panels[1].legend(loc="lower right")
    runs = max(row["runs"] for row in on)
    caption(figure, f"Simulated: the median of {runs} runs with different seeds; whiskers: the least to the most.")


EXPERIMENT: Final = Experiment(
    name="page-fault",
    title="page_fault1 and page_fault2, reporting off and on, beside Duyck's measurements",
    run=run,
    draw=draw,
)
