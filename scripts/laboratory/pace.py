"""The pace of the merged design: passes and seconds until an idle guest is reported, by arithmetic and simulated.

The arithmetic is that of mm/page_reporting.c: a pass makes at most ``ceil(nr_free / 512) + 1`` reports of 32 blocks
from one list, and passes are two seconds apart.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER
from guest.mm.reporting.reporters import make_reporter
from guest.mm.reporting.rotation import BUDGET_SHARE, CAPACITY, DELAY
from guest.simulation import Simulation
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table
from scripts.laboratory.style import LOOKS, caption

SIZES: Final = (1, 8, 32, 128)
"""GiB of memory, all of it free."""
_LONG_ENOUGH: Final = 120.0
"""Seconds."""


def predict(gib: int) -> tuple[int, int]:
    """Return the reports of a full pass and the passes for ``gib`` GiB of free blocks of MAX_ORDER."""
    blocks = gib * GIB // (PAGE_SIZE << MAX_ORDER)
    reports = -(-blocks // (CAPACITY * BUDGET_SHARE)) + 1
    return reports, -(-blocks // (reports * CAPACITY))


def simulate(gib: int, reporter_name: str) -> Simulation:
    """Return an idle guest's first minutes with the reporter of that name."""
    allocator = PageAllocator(gib * GIB // PAGE_SIZE)
    simulation = Simulation(allocator, make_reporter(reporter_name, allocator), sample_interval=1e9)
    simulation.run(_LONG_ENOUGH)
    return simulation


def measure(gib: int) -> list[Row]:
    """Return a row for each pass of ``rotation``, and one for all that ``boundary`` does."""
    reports, passes = predict(gib)
    rows: list[Row] = []
    for name in ("rotation", "boundary"):
        reported = 0
        for number, group in itertools.groupby(simulate(gib, name).reports, key=lambda report: report.pass_number):
            records = list(group)
            reported += sum(record.pages for record in records)
            rows.append(
                {
                    "free_gib": gib,
                    "reporter": name,
                    "pass": number,
                    "begin_seconds": records[0].begin,
                    "end_seconds": records[-1].begin + records[-1].seconds,
                    "reports": len(records),
                    "reported_gib": reported * PAGE_SIZE / GIB,
                    "predicted_reports_per_pass": reports if name == "rotation" else None,
                    "predicted_passes": passes if name == "rotation" else None,
                }
            )
    return rows


def _line(gib: int, rows: Sequence[Row]) -> tuple[str, ...]:
    reports, passes = predict(gib)
    rotation = [row for row in rows if row["free_gib"] == gib and row["reporter"] == "rotation"]
    boundary = [row for row in rows if row["free_gib"] == gib and row["reporter"] == "boundary"]
    return (
        f"{gib} GiB",
        str(reports),
        str(rotation[0]["reports"]),
        str(passes),
        str(len(rotation)),
        f"{passes * DELAY:.0f} s",
        f"{rotation[-1]['end_seconds']:.2f} s",
        f"{boundary[-1]['end_seconds']:.2f} s",
    )


def run(quick: bool, progress: Progress) -> Outcome:
    """Predict and simulate all sizes."""
    sizes = SIZES[:2] if quick else SIZES
    rows: list[Row] = []
    for gib in sizes:
        progress(f"idle guest of {gib} GiB")
        rows += measure(gib)
    header = ("free", "reports a pass", "simulated", "passes", "simulated", "seconds", "simulated", "boundary")
    return Outcome(
        tables=(
            Table(
                title="Until an idle guest is reported: merged design predicted and simulated (rotation), and boundary",
                header=header,
                rows=tuple(_line(gib, rows) for gib in sizes),
            ),
        ),
        notes=(
            "predicted: a pass of one list makes at most ceil(nr_free / 512) + 1 reports of 32, passes start 2 s"
            ' apart; the kernel\'s own comment says "about 30 seconds".',
            "No page is present yet, so the device needs 3 us a range and 150 us a report: what is left is the pace"
            " that the reporter sets itself. boundary has none: 0.1 s, then flat out.",
            "Nothing here depends on chance: the times are the same on every run.",
        ),
        rows=rows,
    )


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw the share of free memory that was reported over time."""
    axes = figure.subplots()
    figure.suptitle("How fast an idle guest is reported")
    end = {"marker": "o", "color": "black", "linestyle": "none", "markersize": 14, "fillstyle": "none"}
    ends = []
    for look, gib in zip(LOOKS, sorted({row["free_gib"] for row in rows}), strict=False):
        passes = [row for row in rows if row["free_gib"] == gib and row["reporter"] == "rotation"]
        times = [0.0, *(row["begin_seconds"] for row in passes)]
        shares = [0.0, *(100 * row["reported_gib"] / gib for row in passes)]
        axes.step(times, shares, where="post", label=f"rotation, {gib} GiB free", **look.of_line())
        ends.append(passes[0]["predicted_passes"] * DELAY)
    axes.plot(ends, [100] * len(ends), label="end by arithmetic", **end)
    slowest = max(row["end_seconds"] for row in rows if row["reporter"] == "boundary")
    axes.plot([0, 0.1, slowest], [0, 0, 100], label="boundary, any of these", **LOOKS[-1].of_line(markevery=[2]))
    axes.set_xlabel("time since the device came (seconds)")
    axes.set_ylabel("free memory that the host was told of (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 106)
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower right", handlelength=3.5)
    caption(figure, "Virtual time, without any chance: the same on every run. A marker is the beginning of a pass.")


EXPERIMENT: Final = Experiment(
    name="pace",
    title="passes and seconds until an idle guest is reported: the merged design, predicted and simulated",
    run=run,
    draw=draw,
)
