"""The screen of ``top``: its lines, from what the daemons said last, and what each key does.

Plain characters, no colours: only the line of the machine that keys act on is inverted.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from host.balloonctl.table import cut, health, printable, short_size, short_time
from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.doctor.finding import NOTES

Entry = Mapping[str, Any]

BAR: Final = 20
"""Characters of a bar."""

NARROW: Final = 80
NARROW_BAR: Final = 8
"""Columns of a terminal below which bars have so many characters."""

KEYS: Final = "up/down select  s sort  r reclaim  i inhibit  a allow  d doctor  q quit"
LEGEND: Final = "# in use  % free but held  . given back  o balloon"


class Action(Enum):
    """What a key asks for, beside what changes the screen alone."""

    QUIT = "quit"
    RECLAIM = "reclaim"
    INHIBIT = "inhibit"
    ALLOW = "allow"


class Row(NamedTuple):
    """One machine: what it is called, its facts, and the bytes a second that were discarded lately."""

    label: str
    entry: Entry
    rate: float


SORTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "number": lambda row: 0,
    "held": lambda row: -(row.entry["host-backed"] or 0),
    "rate": lambda row: -row.rate,
    "health": lambda row: -len(row.entry["health"]),
}
"""What rows are sorted by, in the order of the key."""

_ACTIONS: Final = {"q": Action.QUIT, "r": Action.RECLAIM, "i": Action.INHIBIT, "a": Action.ALLOW}


@dataclass(slots=True)
class TopState:
    """What the keys have chosen. ``selected`` is the label of a machine, ``message`` says what came of the last key."""

    selected: str = ""
    sort: str = "number"
    explains: bool = False
    message: str = ""
    labels: list[str] = field(default_factory=list)

    def press(self, key: str) -> Action | None:
        """Take a key: a character, ``up`` or ``down``. Return what it asks for, None if only the screen changes."""
        if key in ("up", "down", "k", "j") and self.labels:
            at = self.labels.index(self.selected) if self.selected in self.labels else 0
            at += 1 if key in ("down", "j") else -1
            self.selected = self.labels[max(0, min(at, len(self.labels) - 1))]
        elif key == "s":
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key == "d":
            self.explains = not self.explains
        return _ACTIONS.get(key)


def rates(before: Mapping[str, Entry], now: Mapping[str, Entry], seconds: float) -> dict[str, float]:
    """Return the bytes a second that were discarded of each machine between two answers, by label."""
    grown = {
        label: entry["discarded-bytes"] - before[label]["discarded-bytes"]
        for label, entry in now.items()
        if label in before
    }
    return {label: max(size, 0) / seconds if seconds > 0 else 0.0 for label, size in grown.items()}


def bar(entry: Entry, length: int = BAR) -> str:
    """Return where a machine's memory is, as ``length`` characters: see :data:`LEGEND`."""
    total, held = int(entry["guest-memory"]), int(entry["host-backed"] or 0)
    if not total:
        return " " * length
    balloon = min(int(entry["balloon-actual"]), total)
    free = entry["statistics"].get("memfree")
    in_use = held if free is None else min(held, max(total - balloon - free, 0))
    ends, at = [], 0
    for part in (in_use, max(min(held, total - balloon) - in_use, 0)):
        at += part
        ends.append(round(length * at / total))
    inflated = round(length * balloon / total)
    used, kept = min(ends[0], length - inflated), min(ends[1], length - inflated)
    return "#" * used + "%" * (kept - used) + "." * (length - kept - inflated) + "o" * inflated


def screen(rows: Sequence[Row], state: TopState, clock: str, width: int, height: int) -> list[tuple[str, bool]]:
    """Return the lines of the screen, each with whether it is inverted; ``state`` learns the order of the machines."""
    ordered = sorted(rows, key=SORTS[state.sort])
    state.labels = [row.label for row in ordered]
    if state.selected not in state.labels:
        state.selected = state.labels[0] if state.labels else ""
    lines = [(cut(_title(ordered, state, clock), width), False), (cut(LEGEND, width), False), ("", False)]
    footer = [(cut(state.message, width), False), (cut(KEYS, width), True)]
    explained = _explained(ordered, state, width) if state.explains else []
    room = max(height - len(lines) - len(footer) - len(explained) - 1, 1)
    length = NARROW_BAR if width < NARROW else BAR
    label = max([2, *(len(row.label) for row in ordered)])
    lines.append((cut(_heading(label, length), width), False))
    first = max(state.labels.index(state.selected) - room + 1, 0) if state.labels else 0
    shown = ordered[first : first + room]
    lines += [(cut(_row(row, label, length), width), row.label == state.selected) for row in shown]
    lines += [("", False)] * (room - len(shown))
    lines += [(line, False) for line in explained]
    return (lines + footer)[: max(height, 1)]


def _title(rows: Sequence[Row], state: TopState, clock: str) -> str:
    held = sum(row.entry["host-backed"] or 0 for row in rows)
    memory = sum(row.entry["guest-memory"] for row in rows)
    ill = sum(any(cause not in NOTES for cause in row.entry["health"]) for row in rows)
    rate = sum(row.rate for row in rows)
    return (
        f"{clock}  {len(rows)} machines, {ill} not healthy; host holds {short_size(held)} of {short_size(memory)}; "
        f"{short_size(round(rate))}/s back; by {state.sort}"
    )


def _heading(label: int, length: int) -> str:
    return (
        f"{'VM':<{label}} {'NAME':<10} {'MEMORY':>6} {'HOST':>5} {'WHERE':<{length}} {'BACK/s':>6} {'LAST':>4} HEALTH"
    )


def _row(row: Row, label: int, length: int) -> str:
    entry = row.entry
    return (
        f"{row.label:<{label}} {printable(entry['name'])[:10]:<10} {short_size(entry['guest-memory']):>6} "
        f"{short_size(entry['host-backed']):>5} {bar(entry, length)} {short_size(round(row.rate)):>6} "
        f"{short_time(entry['last-report']):>4} {health(entry)}"
    )


def _explained(rows: Sequence[Row], state: TopState, width: int) -> list[str]:
    row = next((row for row in rows if row.label == state.selected), None)
    if row is None:
        return []
    findings = diagnose(read_facts(row.entry))
    if not findings:
        return [cut(f"vm {row.label}: nothing is wrong", width)]
    lines: list[str] = []
    for finding in findings[:2]:
        for begin, text in (("! ", finding.sentence), ("  ", finding.remedy)):
            lines += textwrap.wrap(text, max(width, 20), initial_indent=begin, subsequent_indent="  ")
    return lines
