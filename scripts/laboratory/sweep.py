"""Reporting order x delay x capacity for a compilation: what the host saves, and what that costs.

The settings are those of HyperAlloc's measurement. The guest and its build are much smaller than theirs, so only ratios
are comparable.
"""

from collections.abc import Sequence
from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import make_reporter
from guest.simulation import Simulation
from guest.workloads.build import Build
from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table
from scripts.laboratory.page_fault import FaultCost
from scripts.laboratory.published import HYPERALLOC, HYPERALLOC_OFF
from scripts.laboratory.style import SOURCE_LOOKS, caption

MEMORY: Final = 1536 * MIB
"""Of the guest. A zone that cannot spare a whole report is left alone, and 512 blocks of 2 MiB are 1 GiB."""
BUILD: Final = 208 * MIB
"""Memory of the build at its peak: more would take too long."""
SECONDS: Final = 60.0
_QUICK: Final = (24 * MIB, 4.0)
"""Peak of the build, and seconds."""
_UNIT: Final = (0, 2.0, 32)
"""The setting whose added processor time is 1."""

Setting = tuple[int, float, int]
"""Order, delay in seconds, capacity."""


def measure(setting: Setting | None, size: int, seconds: float) -> Row:
    """Return one row: a build of so many virtual seconds under ``rotation`` with that setting; None reports nothing."""
    allocator = PageAllocator(MEMORY // PAGE_SIZE)
    reporter = None
    order, delay, capacity = setting or (None, None, None)
    if setting is not None:
        reporter = make_reporter("rotation", allocator, order=order, delay=delay, capacity=capacity)
    build = Build(size=size, seconds=seconds)
    simulation = Simulation(allocator, reporter, [build], device_capacity=capacity or 1, sample_interval=1.0)
    simulation.run(seconds)
    # The host has small pages, as in the cost of the device: each page that is touched again is a fault.
    cost = FaultCost()
    fault_seconds = simulation.host.refaults * (cost.exit_seconds + PAGE_SIZE / cost.zero_bytes_per_second)
    return {
        "order": order,
        "delay_seconds": delay,
        "capacity": capacity,
        "build_mib": size // MIB,
        "virtual_seconds": seconds,
        "footprint_gib_minutes": simulation.footprint_gib_minutes,
        "allocated_gib_minutes": simulation.allocated_gib_minutes,
        "refaults": simulation.host.refaults,
        "reports": len(simulation.reports),
        "device_cpu_seconds": simulation.device_seconds,
        "refault_cpu_seconds": fault_seconds,
        "out_of_memory": len(simulation.out_of_memory),
    }


def _published_added_minutes(setting: Setting) -> float:
    return HYPERALLOC[setting].system_minutes - HYPERALLOC_OFF.system_minutes


def _added_seconds(row: Row) -> float:
    return float(row["device_cpu_seconds"] + row["refault_cpu_seconds"])


def _name(setting: Setting) -> str:
    order, delay, capacity = setting
    return f"order {order}, {delay:g} s, {capacity}"


def compare(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with ratios added: footprint to no reporting (the first row), processor time to ``_UNIT``."""
    off = rows[0]
    by_setting = {(row["order"], row["delay_seconds"], row["capacity"]): row for row in rows[1:]}
    unit = _added_seconds(by_setting[_UNIT])
    compared: list[Row] = [
        {
            **off,
            "setting": "no reporting",
            "footprint_ratio": 1.0,
            "published_footprint_ratio": 1.0,
            "published_average_ratio": 1.0,
        }
    ]
    for setting, row in by_setting.items():
        theirs = HYPERALLOC[setting]
        footprint = theirs.footprint_gib_minutes / HYPERALLOC_OFF.footprint_gib_minutes
        compared.append(
            {
                **row,
                "setting": _name(setting),
                "footprint_ratio": row["footprint_gib_minutes"] / off["footprint_gib_minutes"],
                "published_footprint_ratio": footprint,
                "published_average_ratio": footprint * HYPERALLOC_OFF.build_minutes / theirs.build_minutes,
                "added_cpu_ratio": _added_seconds(row) / unit,
                "published_added_cpu_ratio": _published_added_minutes(setting) / _published_added_minutes(_UNIT),
            }
        )
    return compared


def _line(row: Row) -> tuple[str, ...]:
    ratios = ("", "")
    if "added_cpu_ratio" in row:
        ratios = (f"{row['added_cpu_ratio']:.3f}", f"{row['published_added_cpu_ratio']:.3f}")
    return (
        row["setting"],
        f"{row['footprint_gib_minutes']:.4f}",
        f"{row['footprint_ratio']:.3f}",
        f"{row['published_average_ratio']:.3f}",
        f"{row['published_footprint_ratio']:.3f}",
        f"{row['refaults']:,}",
        f"{row['device_cpu_seconds']:.3f}",
        *ratios,
    )


def run(quick: bool, progress: Progress) -> Outcome:
    """Build without reporting and with each published setting."""
    size, seconds = _QUICK if quick else (BUILD, SECONDS)
    rows: list[Row] = []
    for setting in (None, *HYPERALLOC):
        progress("no reporting" if setting is None else _name(setting))
        rows.append(measure(setting, size, seconds))
    rows = compare(rows)
    failed = [row["setting"] for row in rows if row["out_of_memory"]]
    table = Table(
        title=f"A build of {seconds:.0f} s and {size // MIB} MiB at its peak under rotation, by order, delay, capacity",
        header=(
            "setting",
            "GiB*min",
            "ratio",
            "published avg",
            "total",
            "refaults",
            "device CPU s",
            "added CPU",
            "published",
        ),
        rows=tuple(_line(row) for row in rows),
    )
    notes = (
        "ratio: footprint against no reporting. The memory that the build has in use would be"
        f" {rows[0]['allocated_gib_minutes'] / rows[0]['footprint_gib_minutes']:.3f}. HyperAlloc's guest has 16 GiB,"
        " all of it full of page cache without reporting; ours frees nothing for caches, so there is less to save.",
        "published avg: their footprint divided by the build's time, total: as it is. They differ where reporting made"
        " the build slower, which is not modelled here: ours lasts the same at any cost of reporting.",
        "added CPU: device and refaults (3 us and clearing for each page of 4 KiB), with order 0, 2 s, 32 as 1;"
        " published: system time over that without reporting, on the same scale. The guest's own share of the work is"
        " not modelled.",
        "The build lasts a minute instead of 41, so the delays are long beside it.",
        "One run of each, all with the same seed: more would take too long, so the spread is not known.",
        *((f"out of memory before the end, so footprint and CPU are too low: {'; '.join(failed)}",) if failed else ()),
    )
    return Outcome(tables=(table,), notes=notes, rows=rows)


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw footprint and added processor time of each setting, simulated and published."""
    figure.suptitle(
        "Reporting order, delay, capacity: memory that a build keeps, processor time that it costs the host"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["setting"] for row in rows]
    places = range(len(names))
    for axes, key, published_key, label in (
        (
            left,
            "footprint_ratio",
            "published_average_ratio",
            "memory kept, average over the build\n(ratio, no reporting = 1)",
        ),
        (right, "added_cpu_ratio", "published_added_cpu_ratio", "processor time added\n(ratio, order 0, 2 s, 32 = 1)"),
    ):
        simulated = [row.get(key) or 0 for row in rows]
        published = [row.get(published_key) or 0 for row in rows]
        axes.barh(
            [place - 0.2 for place in places],
            simulated,
            0.4,
            label=f"simulated ({rows[0]['build_mib']} MiB, {rows[0]['virtual_seconds']:.0f} s)",
            **SOURCE_LOOKS["simulated"].of_bars(),
        )
        axes.barh(
            [place + 0.2 for place in places],
            published,
            0.4,
            label="published (HyperAlloc: 16 GiB, 41 min)",
            **SOURCE_LOOKS["published"].of_bars(),
        )
        axes.set_xlabel(label)
        axes.grid(True, axis="x", alpha=0.3)
    left.set_yticks(places, names)
    left.set_ylabel("order, delay (s), blocks in a report")
    left.invert_yaxis()
    right.legend(loc="upper right", fontsize=8)
    caption(figure, "Simulated: one run of each, all with the same seed; the spread is not known.")


EXPERIMENT: Final = Experiment(
    name="sweep",
    title="reporting order x delay x capacity for a build, beside HyperAlloc's measurements",
    run=run,
    draw=draw,
)
