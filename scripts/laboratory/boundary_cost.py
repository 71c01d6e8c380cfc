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
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table, least, most
from scripts.laboratory.published import BOUNDARY_OVERHEAD, WILL_IT_SCALE
from scripts.laboratory.style import ERRORS, REPORTER_LOOKS, SOURCE_LOOKS, caption, error_bars

SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
"""GiB of memory."""
SMALL_REFILL: Final = 512 * MIB
REFILLS: Final = ("half", "512 MiB")

ENTRY_NANOSECONDS: Final = (20, 40, 80)
"""Assumed, not measured: the least, a likely and the greatest cost of one step along a free list. The entries of a list
of 4 MiB blocks lie 64 KiB apart, each in a cache line (and often a page of the TLB) of its own. The least is a step
whose ``struct page`` the last-level cache has, the greatest one that memory has to bring."""

PUBLISHED_GUEST: Final = 32
"""GiB, of the guest for which ``BOUNDARY_OVERHEAD`` was published."""

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


_PUBLISHED: Final = "published_throughput_loss_percent"
"""Has a least and a most, in the row of the guest and the reporter that it was published for."""


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
    per_block = walked / blocks
    shares = [100 * per_block * entry * 1e-9 / published_block_seconds() for entry in ENTRY_NANOSECONDS]
    row = {
        "memory_gib": gib,
        "refill": refill,
        "reporter": reporter_name,
        "blocks_reported": blocks,
        "entries_walked": walked,
        "entries_per_block": per_block,
        "lock_share_percent": shares[1],
        least("lock_share_percent"): shares[0],
        most("lock_share_percent"): shares[2],
    }
    if (gib, reporter_name, refill) == (PUBLISHED_GUEST, "scan", REFILLS[1]):
        low, high = BOUNDARY_OVERHEAD
        row |= {least(_PUBLISHED): low, most(_PUBLISHED): high}
    return row


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
    cheap, likely, dear = ENTRY_NANOSECONDS
    notes = [
        f"time: share of a second in which walking holds the zone lock, if one entry takes {likely} ns (assumed: half"
        f" of it at {cheap} ns, twice at {dear} ns) and every block that 16 processes of page_fault1 free is reported;"
        f" they fault 4 MiB in {published_block_seconds() * 1e6:.0f} us (published baseline of v12).",
        "Entries are counted, without any chance: they are the same on every run.",
        f"published: without the boundary page_fault1 lost {low} to {high} % more on a guest of {PUBLISHED_GUEST} GiB"
        " (v12 3/6 and its cover letter). That is throughput of real hardware, host faults not counted: another"
        " quantity than time under the lock.",
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


_PANELS: Final = {"half": "Half of the memory was freed", "512 MiB": "512 MiB were freed, the rest is reported already"}

_CAPTION: Final = "Entries are counted in a simulation without any chance: they are the same on every run."
_ASSUMED: Final = "\nWhiskers: the least and the greatest cost of an entry that is assumed."

_SHAPES: Final[dict[str, dict[str, Any]]] = {
    "scan": {},
    "boundary": {"markersize": 12, "linewidth": 3, "alpha": 0.7},
    "rotation": {"markersize": 5},
}
"""Boundary and rotation cost the same: one line is wider, so that both are seen. Lines are drawn in this order."""


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw entries per block over the guest's size, a panel for each refill. Below, for the guest that figures were
    published for, the time that the walk takes and, in a panel of its own, the published loss."""
    figure.suptitle("How far a reporter walks along the free list for each block it reports")
    published = [row for row in rows if row.get(least(_PUBLISHED)) is not None]
    if published:
        figure.set_size_inches(9.0, 6.4)
        top, bottom = figure.subfigures(2, 1, height_ratios=(3, 1.5))
        (guest,) = {(row["memory_gib"], row["refill"]) for row in published}
        _draw_guest(bottom, [row for row in rows if (row["memory_gib"], row["refill"]) == guest], published)
    else:
        top = figure.subfigures(1, 1)
    _draw_sizes(top, rows)
    caption(figure, _CAPTION + (_ASSUMED if published else ""))


def _draw_sizes(figure: Any, rows: Sequence[Row]) -> None:
    sizes = sorted({row["memory_gib"] for row in rows})
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (refill, title) in zip(panels, _PANELS.items(), strict=True):
        for name, shape in _SHAPES.items():
            mine = [row for row in rows if row["refill"] == refill and row["reporter"] == name]
            axes.plot(
                [row["memory_gib"] for row in mine],
                [row["entries_per_block"] for row in mine],
                label=name,
                **REPORTER_LOOKS[name].of_line(**shape),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("memory of the guest (GiB)")
        axes.set_title(title, fontsize="medium")
        axes.grid(True, alpha=0.3)
    panels[0].set_ylabel("walked per reported block\n(list entries)")
    panels[0].legend(loc="center right", handlelength=3.5)


def _draw_guest(figure: Any, rows: Sequence[Row], published: Sequence[Row]) -> None:
    # Time under the lock and lost throughput are both per cent, and not the same: two panels, two axes.
    computed, lost = figure.subplots(1, 2)
    gib, refill = rows[0]["memory_gib"], rows[0]["refill"]
    cheap, likely, dear = ENTRY_NANOSECONDS
    for place, row in enumerate(rows):
        look = REPORTER_LOOKS[row["reporter"]]
        spread = error_bars([row], "lock_share_percent")
        computed.barh(place, row["lock_share_percent"], 0.6, xerr=spread, error_kw=ERRORS, **look.of_bars())
    computed.set_yticks(range(len(rows)), [row["reporter"] for row in rows])
    computed.set_title(f"Simulated: {gib} GiB, {refill} freed", fontsize="medium")
    computed.set_xlabel(
        f"time the zone lock is held for it (% of a second)\nat {likely} ns an entry (assumed; {cheap} to {dear} ns)"
    )
    (row,) = published
    low, high = row[least(_PUBLISHED)], row[most(_PUBLISHED)]
    look = SOURCE_LOOKS["published"]
    lost.barh(0, high - low, 0.3, left=low, **look.of_bars())
    lost.text((low + high) / 2, 0.35, f"“up to {low} %”, “up to {high} %”", ha="center")
    lost.set_yticks([0], ["without\nboundary"])
    lost.set_ylim(-1, 1)
    lost.set_xlim(computed.get_xlim())
    lost.set_title(f"Published: {gib} GiB, measured on hardware", fontsize="medium")
    lost.set_xlabel("throughput of page_fault1 lost\n(% of pages faulted a second)")
    for axes in (computed, lost):
        axes.grid(True, axis="x", alpha=0.3)


EXPERIMENT: Final = Experiment(
    name="boundary-cost",
    title="entries walked per reported block: boundary, rotation, scan, guests of 1 to 64 GiB",
    run=run,
    draw=draw,
)
