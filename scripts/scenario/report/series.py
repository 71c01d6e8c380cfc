"""The series of a page: memory of the host and of each machine at the chosen moments, in pages of 4 KiB."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from scripts.scenario.report.run_files import RunFiles
from scripts.scenario.report.thinning import chosen_times
from scripts.scenario.run_record import LEDGER_CAUSES, VmState

MACHINES_MOST: Final = 12
"""Machines that have a part of the page of their own: those that the host held most for."""

LAYERS: Final = ("allocated", "free", "reported", "resident", "balloon", "cache")

Row = Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class VmSeries:
    """One machine: each layer and each cause has one number for each moment, ``states`` when it came into which."""

    layers: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in LAYERS})
    causes: dict[str, list[int]] = field(default_factory=dict)
    states: list[tuple[float, str]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Series:
    """All series. ``others`` is what the host held for all machines that are not in ``vms``."""

    times: list[float] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    pressure: list[float | None] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    vms: dict[str, VmSeries] = field(default_factory=dict)


def read_series(files: RunFiles) -> Series:
    """Read the samples and the ledger.

    Raises:
        BalloonError: a file is broken.
    """
    used = _used_bytes(files.samples())
    chosen = set(chosen_times(list(used.items())))
    series = Series(
        times=[t for t in used if t in chosen],
        vms={name: VmSeries() for name in chosen_machines(files.summary["vms"])},
    )
    _read_samples(files.samples(), series)
    _read_ledger(files.ledger(), series)
    return series


def chosen_machines(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the machines that are shown one by one, in the order of the scenario: those that were killed
    or have failed, then those with the highest peaks."""
    bad = (VmState.OOM_KILLED.value, VmState.FAILED.value)
    ranked = sorted(outcomes, key=lambda name: (outcomes[name]["state"] in bad, outcomes[name]["peak_bytes"]))
    most = set(ranked[-MACHINES_MOST:])
    return [name for name in outcomes if name in most]


def _used_bytes(rows: Iterable[Row]) -> dict[float, int]:
    used: dict[float, int] = {}
    for row in rows:
        used.setdefault(_number(row, "t"), _whole(row, "host_used_bytes"))
    return used


def _read_samples(rows: Iterable[Row], series: Series) -> None:
    # Rows of one moment follow each other, each machine once.
    index = {t: position for position, t in enumerate(series.times)}
    moments = len(series.times)
    series.used, series.others, series.pressure = [0] * moments, [0] * moments, [None] * moments
    for vm in series.vms.values():
        vm.layers = {name: [0] * moments for name in LAYERS}
    for row in rows:
        position = index.get(_number(row, "t"))
        if position is None:
            continue
        series.used[position] = _pages(row, "host_used_bytes")
        pressure = row.get("host_pressure")
        series.pressure[position] = _number(row, "host_pressure") if pressure else None
        shown = series.vms.get(row["vm"])
        if shown is None:
            series.others[position] += _pages(row, "resident_bytes")
            continue
        for name in LAYERS:
            shown.layers[name][position] = _pages(row, f"{name}_bytes")
        if not shown.states or shown.states[-1][1] != row["state"]:
            shown.states.append((series.times[position], row["state"]))


def _read_ledger(rows: Iterable[Row], series: Series) -> None:
    index = {t: position for position, t in enumerate(series.times)}
    for row in rows:
        position, vm = index.get(_number(row, "t")), series.vms.get(row["vm"])
        if position is None or vm is None:
            continue
        for cause in LEDGER_CAUSES:
            if size := _pages(row, cause):
                vm.causes.setdefault(cause, [0] * len(series.times))[position] = size
    for vm in series.vms.values():
        vm.causes = {cause: vm.causes[cause] for cause in LEDGER_CAUSES if cause in vm.causes}


def _number(row: Row, name: str) -> float:
    try:
        if math.isfinite(number := float(row[name])):
            return number
        raise ValueError
    except (KeyError, ValueError):
        raise BalloonError(
            f"a sample of {row.get('vm')!r} at {row.get('t')!r}: {name} is {row.get(name)!r}, no number"
        ) from None


def _whole(row: Row, name: str) -> int:
    try:
        return int(row[name])
    except (KeyError, ValueError):
        raise BalloonError(
            f"a sample of {row.get('vm')!r} at {row.get('t')!r}: {name} is {row.get(name)!r}, no whole number"
        ) from None


def _pages(row: Row, name: str) -> int:
    return _whole(row, name) // PAGE_SIZE
