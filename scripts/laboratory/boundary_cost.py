"""What it costs to have no boundary: list entries that the reporter walks for each block that it reports.

A guest boots and everything is reported; then a workload takes memory, frees it, and the freed blocks are reported: the
second part counts. Once half of the memory is taken (the list is refilled), once 512 MiB for any size of the guest (a
long list of reported blocks, in which few are to be found).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import PAGEBLOCK_ORDER
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.simulation import Simulation
from guest.workloads.workload import free_all, wait_for_block
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table
from scripts.laboratory.published import BOUNDARY_OVERHEAD, WILL_IT_SCALE

SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
"""GiB of memory."""
SMALL_REFILL: Final = 512 * MIB
REFILLS: Final = ("half", "512 MiB")

ENTRY_SECONDS: Final = 40e-9
"""Assumed, not measured: one step along a free list whose ``struct page`` is not in the cache. The entries of a list of
4 MiB blocks lie 64 KiB apart, each in a cache line (and often a page of the TLB) of its own."""

_SETTLE: Final = 60.0
_BLOCK_PAGES: Final = 1024
"""Seconds until everything is reported, also by a reporter that paces itself; pages of a block as they end up."""


@dataclass(frozen=True, slots=True)
class _Refill:
    # Takes so many bytes at `_SETTLE` in blocks of 2 MiB, and frees them at once.
    size: int

    def run(self, machine: Machine, _seed: int) -> Iterator[float]:
        yield _SETTLE
        held = []
        for _ in range(self.size // (PAGE_SIZE << PAGEBLOCK_ORDER)):
            held.append((yield from wait_for_block(machine, PAGEBLOCK_ORDER)))
        free_all(machine, held)


def published_block_seconds() -> float:
    """Return the time in which Duyck's machine of 16 page_fault1 processes faulted as much as one block holds."""
    return _BLOCK_PAGES / WILL_IT_SCALE["v12"]["page_fault1", 16].baseline


def measure(gib: int, reporter_name: str, refill: str) -> Row:
    """Return one row: a guest of ``gib`` GiB, whose ``refill`` is reported by the reporter of that name."""
    allocator = PageAllocator(gib * GIB // PAGE_SIZE)
    reporter = make_reporter(reporter_name, allocator)
    size = gib * GIB // 2 if refill == "half" else SMALL_REFILL
    simulation = Simulation(allocator, reporter, [_Refill(size)], sample_interval=1e9)
    simulation.run(_SETTLE - 1.0)
    before = replace(reporter.statistics)
    simulation.run(_SETTLE + 1.0)
    blocks = reporter.statistics.blocks - before.blocks
    walked = reporter.statistics.entries_walked - before.entries_walked
    return {
        "memory_gib": gib,
        "refill": refill,
        "reporter": reporter_name,
        "blocks_reported": blocks,
        "entries_walked": walked,
        "entries_per_block": walked / blocks,
        "lock_share_percent": 100 * walked / blocks * ENTRY_SECONDS / published_block_seconds(),
    }


def _table(refill: str, title: str, rows: Sequence[Row]) -> Table:
    sizes = sorted({row["memory_gib"] for row in rows})
    by_key = {(row["memory_gib"], row["reporter"]): row for row in rows if row["refill"] == refill}
    lines = [
        (
            f"{gib} GiB",
            *(f"{by_key[gib, name]['entries_per_block']:.2f}" for name in REPORTERS),
            *(f"{by_key[gib, name]['lock_share_percent']:.2f} %" for name in REPORTERS),
        )
        for gib in sizes
    ]
    header = ("guest", *REPORTERS, *(f"{name}, time" for name in REPORTERS))
    return Table(title=title, header=header, rows=tuple(lines))


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    low, high = BOUNDARY_OVERHEAD
    notes = [
        f"time: share of a second in which walking holds the zone lock, if one entry takes {ENTRY_SECONDS * 1e9:.0f} ns"
        f" (assumed) and every block that 16 processes of page_fault1 free is reported; they fault 4 MiB in"
        f" {published_block_seconds() * 1e6:.0f} us (published baseline of v12).",
        f"published: without the boundary page_fault1 lost {low} to {high} % more on a guest of 32 GiB (v12 3/6 and"
        " its cover letter). That is throughput of real hardware, host faults not counted.",
    ]
    for row in rows:
        if (row["memory_gib"], row["reporter"], row["refill"]) == (32, "scan", "512 MiB"):
            entry = low / 100 * published_block_seconds() / row["entries_per_block"]
            notes.append(f"scan, 32 GiB, 512 MiB: {low} % would be {entry * 1e9:.0f} ns an entry.")
    notes.append(
        "boundary with 512 MiB: every start of work forgets the boundaries and walks the list once to find them again,"
        " as v12 does; divided by few blocks that one walk shows, and so does that of each pass of rotation. What both"
        " save is the walk for every batch."
    )
    return tuple(notes)


def run(quick: bool, progress: Progress) -> Outcome:
    """Measure all sizes, refills and reporters."""
    rows: list[Row] = []
    for gib in SIZES[:3] if quick else SIZES:
        progress(f"guest of {gib} GiB")
        rows += [measure(gib, name, refill) for refill in REFILLS for name in REPORTERS]
    return Outcome(
        tables=(
            _table("half", "Entries walked for each block reported, half of the memory freed", rows),
            _table("512 MiB", "The same, 512 MiB freed", rows),
        ),
        notes=_notes(rows),
        rows=rows,
    )


_STYLES: Final[dict[str, dict[str, Any]]] = {
    "scan": {"color": "tab:red", "marker": "^"},
    "boundary": {"color": "tab:blue", "marker": "o", "linewidth": 5, "markersize": 11, "alpha": 0.5},
    "rotation": {"color": "tab:green", "marker": "s", "markersize": 5},
}
"""Boundary and rotation cost the same: one line is drawn so that both are visible."""

_PANELS: Final = {"half": "Half of the memory was freed", "512 MiB": "512 MiB were freed, the rest is reported already"}


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw entries per block over the guest's size: a panel for each refill."""
    sizes = sorted({row["memory_gib"] for row in rows})
    factor = 100 * ENTRY_SECONDS / published_block_seconds()
    low, high = BOUNDARY_OVERHEAD
    panels = figure.subplots(1, 2, sharey=True)
    figure.suptitle("How far a reporter walks along the free list for each block it reports")
    for axes, (refill, title) in zip(panels, _PANELS.items(), strict=True):
        for name, style in _STYLES.items():
            points = [
                (row["memory_gib"], row["entries_per_block"])
                for row in rows
                if row["refill"] == refill and row["reporter"] == name
            ]
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.axhspan(
            low / factor, high / factor, color="grey", alpha=0.4, label=f"published for 32 GiB: {low}-{high} %"
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("memory of the guest (GiB)")
        axes.set_title(title, fontsize="medium")
        axes.grid(True, alpha=0.3)
    panels[0].set_ylabel("list entries walked per reported block")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 0.13))
    share = panels[1].secondary_yaxis("right", functions=(lambda value: value * factor, lambda value: value / factor))
    share.set_ylabel(f"time the zone lock is held for it (%),\nat {ENTRY_SECONDS * 1e9:.0f} ns an entry (assumed)")


EXPERIMENT: Final = Experiment(
    name="boundary-cost",
    title="entries walked per reported block: boundary, rotation, scan, guests of 1 to 64 GiB",
    run=run,
    draw=draw,
)
