"""Everything that a report shows, as one JSON object: the only thing that the page's script reads."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.units import format_size
from scripts.scenario.report.run_files import RunFiles
from scripts.scenario.report.sentence import what_happened
from scripts.scenario.report.series import Series, VmSeries, read_series
from scripts.scenario.report.thinning import EVENTS_MOST, chosen_events, thinned_rounds
from scripts.scenario.report.what_if import what_if

MAPS_CHARACTERS_MOST: Final = 1_200_000
"""Of all maps together: they are the one part of a page that grows with how fragmented memory is."""

MOMENT: Final = 0.001
"""The least duration of a run: one that was ended at its first sample has an axis too."""

_TEXT_MOST: Final = 300
_PLAIN: Final = frozenset({"t", "event", "vm", "side", "time", "session"})


def page_data(files: RunFiles, others: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the object. Memory is in pages of 4 KiB, time in seconds; maps are as ``memory_map`` writes them.

    Raises:
        BalloonError: results cannot be read.
    """
    summary, scenario = files.summary, files.summary["scenario"]
    try:
        series = read_series(files)
        if not series.times:
            raise BalloonError(f"{files.directory}: the run has no sample: it was ended before the first one")
        events, left_out = _events(files.events(), series.vms)
        return {
            "title": scenario["title"],
            "sentence": what_happened(summary),
            "facts": {name: summary.get(name) for name in ("policy", "seed", "virtual", "interrupted", "seconds")},
            "budget": scenario["budget_bytes"] // PAGE_SIZE,
            "duration": max(float(summary["seconds"]), series.times[-1], MOMENT),
            "score": summary["score"],
            "times": series.times,
            "host": {"used": series.used, "pressure": series.pressure},
            "others": _others(series, len(summary["vms"]) - len(series.vms)),
            "vms": _vms(files, series),
            "events": events,
            "left_out": left_out,
            "decisions": _decisions(files.decisions()),
            "compare": what_if(files, others),
        }
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise BalloonError(f"{files.directory}: the results are broken ({type(error).__name__}: {error})") from error


def _others(series: Series, count: int) -> dict[str, Any] | None:
    return {"count": count, "resident": series.others} if count else None


def _vms(files: RunFiles, series: Series) -> list[dict[str, Any]]:
    maps = map_rounds(files.maps(), set(series.vms))
    return [_vm(name, files, one, maps.get(name)) for name, one in series.vms.items()]


def _vm(name: str, files: RunFiles, series: VmSeries, maps: dict[str, Any] | None) -> dict[str, Any]:
    spec, outcome = files.summary["scenario"]["vms"][name], files.summary["vms"][name]
    return {
        "name": name,
        "kind": spec["kind"],
        "memory": spec["memory_bytes"] // PAGE_SIZE,
        "reporter": spec["reporter"],
        "work": spec["command"] or ", ".join(spec["workloads"]),
        "state": outcome["state"],
        "reason": outcome["reason"],
        "finished_at": outcome["finished_at"],
        "peak": outcome["peak_bytes"] // PAGE_SIZE,
        "gib_minutes": outcome["gib_minutes"],
        "refaulted": outcome["refaulted_bytes"] // PAGE_SIZE,
        "stall_seconds": outcome["stall_seconds"],
        "states": series.states,
        **series.layers,
        "causes": series.causes,
        "maps": maps,
    }


def map_rounds(lines: Iterable[Mapping[str, Any]], names: set[str]) -> dict[str, dict[str, Any]]:
    """Return the maps of each of the machines ``names``: the size of a cell, and moment by moment the layers ``free``,
    ``reported``, ``balloon`` and ``resident`` (null where unknown) with the free and the reported blocks by order."""
    found: dict[str, dict[float, list[Any]]] = {}
    cells: dict[str, int] = {}
    sizes: dict[float, int] = {}
    for line in lines:
        if line["vm"] not in names:
            continue
        layers = [line.get(name) for name in ("free", "reported", "balloon", "resident")]
        counts = [line.get(name) for name in ("free_blocks", "reported_blocks")]
        t = float(line["t"])
        found.setdefault(line["vm"], {})[t] = [t, *layers, *counts]
        cells[line["vm"]] = line["cell_bytes"] // PAGE_SIZE
        sizes[t] = sizes.get(t, 0) + sum(len(layer or "") for layer in layers)
    kept = set(thinned_rounds(sorted(sizes), sizes, MAPS_CHARACTERS_MOST))
    return {
        name: {"cell": cells[name], "rounds": [row for t, row in sorted(rounds.items()) if t in kept]}
        for name, rounds in found.items()
    }


def _events(lines: Iterable[Mapping[str, Any]], shown: Container[str]) -> tuple[list[list[Any]], dict[str, int]]:
    kept, left_out = chosen_events(lines, shown)
    rows = [[round(float(event["t"]), 3), event["event"], event.get("vm"), event_text(event)] for event in kept]
    return rows, left_out


def event_text(event: Mapping[str, Any]) -> str:
    """Return what an event says beside its name, time and machine."""
    parts = [_field(key, value) for key, value in event.items() if key not in _PLAIN]
    return _cut(", ".join(part for part in parts if part))


def _field(key: str, value: object) -> str:
    if key in ("reason", "message", "name"):
        return str(value)
    is_size = (key == "bytes" or key.endswith("_bytes")) and isinstance(value, int) and value >= 0
    if is_size and isinstance(value, int):
        return f"{key.removesuffix('_bytes').replace('_', ' ')} {format_size(value)}"
    if isinstance(value, float):
        return f"{key.replace('_', ' ')} {value:.4g}"
    if isinstance(value, bool | int | str):
        return f"{key.replace('_', ' ')} {value}"
    return ""


def _decisions(lines: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    # Of decisions that repeat the last one only the first; of too many, those that ask for something.
    rows: list[list[Any]] = []
    last: tuple[str, ...] = ()
    for line in lines:
        actions = ", ".join(map(_action, line.get("actions", ())))
        said = str(line["reason"]), actions, str(line.get("problem", ""))
        if said != last:
            rows.append([round(float(line["t"]), 3), *map(_cut, said)])
        last = said
    if len(rows) > EVENTS_MOST:
        rows = [row for row in rows if row[2] or row[3]]
    return _evenly(rows, EVENTS_MOST)


def _action(action: Mapping[str, Any]) -> str:
    size = "" if action.get("size") is None else f" {format_size(int(action['size']))}"
    return f"{action['action']} {action['vm']}{size}"


def _evenly(rows: Sequence[list[Any]], most: int) -> list[list[Any]]:
    step = max(1, -(-len(rows) // most))
    return list(rows[::step])


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MOST else text[: _TEXT_MOST - 1] + "…"
