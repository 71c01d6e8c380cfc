"""One real Linux guest that returns memory in every way: by reports, by the balloon, by reclaiming.

Unlike the other experiments this one takes a real kernel, real processes and real time; see
:mod:`scripts.laboratory.linux_run`. Here is what the rows mean to a reader.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.units import MIB
from scripts.laboratory.experiment import Row, Table
from scripts.laboratory.style import LOOKS, Look, caption

CAUSES: Final = {"report": "reported", "inflate": "inflated", "hint": "hinted"}
"""The daemon's events of returned memory, and the guest's way to return it."""

CHART_WIDTH: Final = 48
"""Characters of the longest bar of the plain-text chart."""

CHART_SECONDS: Final = 0.5

_MEMORY_LOOKS: Final = {"memory": LOOKS[5], "balloon": LOOKS[3], "target": LOOKS[1]}
_CAUSE_LOOKS: Final = dict(zip(CAUSES, (LOOKS[0], LOOKS[3], LOOKS[2]), strict=True))
_LEGEND_AT: Final = 0.68
"""In the longest phase, as a share of it: the memory that it began with is given back by then."""
_MARKER_DISTANCE: Final = 0.07
"""Between two markers of a line, in diagonals of the panel: one for each of hundreds of rows would cover it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the run, in seconds since its beginning."""

    name: str
    begin: float
    end: float


def rows_of(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row for each event that the timeline is made of, in order of time; seconds count from the first one.

    ``phase`` events begin a phase, ``memory`` events are what the guest costs the host, ``balloon`` and ``target`` are
    the balloon's size and the size it should have, the rest is memory that was discarded.
    """
    rows: list[Row] = []
    for event in sorted(events, key=lambda event: float(event["t"])):
        name = event["event"]
        row: Row = {"seconds": event["t"], "event": name, "phase": None, "mib": None}
        if name == "phase":
            row["phase"] = event["name"]
        elif name == "memory":
            row["mib"] = event["resident_bytes"] / MIB
        elif name == "balloon":
            row["mib"] = event["actual_bytes"] / MIB
        elif name == "target":
            row["mib"] = event["bytes"] / MIB
        elif name in CAUSES:
            row["mib"] = event["discarded_bytes"] / MIB
        else:
            continue
        rows.append(row)
    begin = rows[0]["seconds"] if rows else 0.0
    return [{**row, "seconds": round(row["seconds"] - begin, 4)} for row in rows]


def phases_of(rows: Sequence[Row]) -> list[Phase]:
    """Return the phases; each ends where the next begins, the last with the last row."""
    begins = [(row["phase"], row["seconds"]) for row in rows if row["event"] == "phase"]
    ends = [*(seconds for _, seconds in begins), *(row["seconds"] for row in rows[-1:])][1:]
    return [Phase(name, begin, end) for (name, begin), end in zip(begins, ends, strict=True)]


def _last(rows: Sequence[Row], event: str, before: float) -> float:
    values = [row["mib"] for row in rows if row["event"] == event and row["seconds"] <= before]
    return float(values[-1]) if values else 0.0


def _given(rows: Sequence[Row], cause: str, phase: Phase) -> float:
    found = (row for row in rows if row["event"] == cause and phase.begin <= row["seconds"] < phase.end)
    return float(sum(row["mib"] for row in found))


def phase_table(rows: Sequence[Row]) -> Table:
    """Return one line for each phase: how long, what came back and why, what the guest costs at its end."""
    lines = []
    for phase in phases_of(rows):
        given = (f"{_given(rows, cause, phase):.0f}" for cause in CAUSES)
        at_end = f"{_last(rows, 'memory', phase.end):.0f}", f"{_last(rows, 'balloon', phase.end):.0f}"
        lines.append((phase.name, f"{phase.end - phase.begin:.2f}", *given, *at_end))
    header = ("phase", "seconds", *CAUSES.values(), "the guest costs", "balloon")
    return Table(
        title="What each phase gave back, and what was left at its end (MiB)", header=header, rows=tuple(lines)
    )


def chart(rows: Sequence[Row]) -> Table:
    """Return the run as bars in plain text: ``#`` is memory that the guest costs, ``o`` the balloon beside it."""
    end = rows[-1]["seconds"] if rows else 0.0
    scale = CHART_WIDTH / max(
        (_last(rows, "memory", row["seconds"]) + _last(rows, "balloon", row["seconds"]) for row in rows), default=1.0
    )
    phases = phases_of(rows)
    lines = []
    for number in range(int(end / CHART_SECONDS) + 1):
        at = number * CHART_SECONDS
        cost, balloon = _last(rows, "memory", at), _last(rows, "balloon", at)
        bar = "#" * round(cost * scale) + "o" * round(balloon * scale)
        begins = ", ".join(phase.name for phase in phases if at <= phase.begin < at + CHART_SECONDS)
        lines.append((f"{at:.1f}", bar.ljust(CHART_WIDTH + 1), f"{cost:.0f}", f"{balloon:.0f}", begins))
    width = max((len(line[-1]) for line in lines), default=0)
    aligned = tuple((*line[:-1], line[-1].ljust(width)) for line in lines)
    header = ("s", "# what the guest costs, o balloon".ljust(CHART_WIDTH + 1), "MiB", "balloon", "begins".ljust(width))
    return Table(title="The guest's memory", header=header, rows=aligned)


def _line(look: Look, **changes: Any) -> dict[str, Any]:
    # Each look begins its markers elsewhere: lines that lie on each other show the markers of all.
    first = _MARKER_DISTANCE * LOOKS.index(look) / len(LOOKS)
    return look.of_line(markevery=(first, _MARKER_DISTANCE), markersize=5, **changes)


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw cost and balloon over time, and below what came back for which reason."""
    memory, causes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle("One Linux guest: what it costs the host, and how memory came back")
    end = rows[-1]["seconds"]
    samples = [row for row in rows if row["event"] == "memory"]
    memory.plot(
        [row["seconds"] for row in samples],
        [row["mib"] for row in samples],
        label="the guest costs",
        **_line(_MEMORY_LOOKS["memory"], linestyle="-"),
    )
    for event, label in (("balloon", "balloon"), ("target", "balloon target")):
        steps = [(0.0, 0.0), *((row["seconds"], row["mib"]) for row in rows if row["event"] == event)]
        steps.append((end, steps[-1][1]))
        memory.step(*zip(*steps, strict=True), where="post", label=label, **_line(_MEMORY_LOOKS[event]))
    for cause, words in CAUSES.items():
        sums = [(0.0, 0.0)]
        for row in rows:
            if row["event"] == cause:
                sums.append((row["seconds"], sums[-1][1] + row["mib"]))
        sums.append((end, sums[-1][1]))
        causes.step(*zip(*sums, strict=True), where="post", label=words, **_line(_CAUSE_LOOKS[cause]))
    top = max(row["mib"] for row in samples)
    phases = phases_of(rows)
    for number, phase in enumerate(phases, 1):
        for axes in (memory, causes):
            axes.axvspan(phase.begin, phase.end, color="black", alpha=0.0 if number % 2 else 0.06, linewidth=0)
        memory.text((phase.begin + phase.end) / 2, top * 1.06, str(number), ha="center", va="bottom", weight="bold")
    names = [f"{number} {phase.name}" for number, phase in enumerate(phases, 1)]
    half = (len(names) + 1) // 2
    memory.set_title("    ".join(names[:half]) + "\n" + "    ".join(names[half:]), fontsize=9)
    memory.set_ylim(0, top * 1.2)
    memory.set_xlim(0, end)
    memory.set_ylabel("memory (MiB)")
    longest = max(phases, key=lambda phase: phase.end - phase.begin)
    middle = longest.begin + _LEGEND_AT * (longest.end - longest.begin)
    place = {"bbox_to_anchor": (middle, 0.62), "bbox_transform": memory.get_xaxis_transform()}
    memory.legend(loc="center", fontsize=8, **place)
    causes.set_ylabel("given back,\nin total (MiB)")
    causes.set_xlabel("time (seconds)")
    causes.legend(loc="upper left", fontsize=8)
    for axes in (memory, causes):
        axes.grid(True, alpha=0.3)
    caption(figure, "Measured in real time: one run.")
