"""The screen of ``top``: its lines, from what the daemons said last, and what each key does.

Colours only support the text: every kind of memory has a character of its own.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from host.balloonctl.table import health, short_size, short_time
from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.doctor.finding import NOTES
from host.terminal_view.bars import ASCII, Part, Symbols
from host.terminal_view.bars import bar as shared_bar
from host.terminal_view.keys import Key, key_line
from host.terminal_view.styled_line import Line, Span, Style, clipped, line, printable

Entry = Mapping[str, Any]

BAR: Final = 20
"""Characters of a bar."""

NARROW: Final = 80
NARROW_BAR: Final = 8
"""Columns of a terminal below which bars have so many characters."""

KEYS: Final = (
    Key(shown="up/down", label="select", meaning="another machine"),
    Key(shown="q", label="quit", meaning="leave"),
    Key(shown="s", label="sort", meaning="by number, memory held, rate, health"),
    Key(shown="r", label="reclaim", meaning="have the guest give up what it does not use"),
    Key(shown="i", label="inhibit", meaning="discard nothing of it"),
    Key(shown="a", label="allow", meaning="discard again"),
    Key(shown="d", label="doctor", meaning="what is wrong with it, and what to do"),
)


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


def bar(entry: Entry, symbols: Symbols, length: int = BAR) -> tuple[Span, ...]:
    """Return where a machine's memory is, as ``length`` characters: see :func:`legend`."""
    total, held = int(entry["guest-memory"]), int(entry["host-backed"] or 0)
    if not total:
        return (Span(" " * length),)
    balloon = min(int(entry["balloon-actual"]), total)
    held = min(held, total - balloon)
    free = entry["statistics"].get("memfree")
    in_use = held if free is None else min(held, max(total - balloon - free, 0))
    parts = (
        Part(symbols.in_use, Style.IN_USE, in_use),
        Part(symbols.free, Style.FREE, held - in_use),
        Part(symbols.empty, Style.FAINT, total - balloon - held),
        Part(symbols.balloon, Style.BALLOON, balloon),
    )
    return shared_bar(parts, total, length, symbols.empty)


def legend(symbols: Symbols) -> Line:
    """Return the line that explains the bars."""
    return line(
        Span(symbols.in_use, Style.IN_USE),
        " in use  ",
        Span(symbols.free, Style.FREE),
        " free but held  ",
        Span(symbols.empty, Style.FAINT),
        " not held  ",
        Span(symbols.balloon, Style.BALLOON),
        " balloon",
    )


def screen(
    rows: Sequence[Row], state: TopState, clock: str, width: int, height: int, symbols: Symbols = ASCII
) -> list[Line]:
    """Return the lines of the screen; ``state`` learns the order of the machines."""
    ordered = sorted(rows, key=SORTS[state.sort])
    state.labels = [row.label for row in ordered]
    if state.selected not in state.labels:
        state.selected = state.labels[0] if state.labels else ""
    head = [line(Span(_title(ordered, state, clock, width), Style.TITLE)), legend(symbols), line()]
    foot = [line(Span(state.message, Style.WARNING)), key_line(KEYS, width)]
    explained = _explained(ordered, state, width) if state.explains else []
    room = max(height - len(head) - len(foot) - len(explained) - 1, 1)
    length = NARROW_BAR if width < NARROW else BAR
    label = max([2, *(len(row.label) for row in ordered)])
    head.append(line(Span(_heading(label, length), Style.TITLE)))
    first = max(state.labels.index(state.selected) - room + 1, 0) if state.labels else 0
    shown = [_row(row, label, length, symbols) for row in ordered[first : first + room]]
    if state.labels:
        at = state.labels.index(state.selected) - first
        shown[at] = line(Span(shown[at].text.ljust(width), Style.SELECTED))
    lines = [*head, *shown, *([line()] * (room - len(shown))), *explained, *foot]
    return [Line(clipped(map(_plain, each.spans), width)) for each in lines[: max(height, 1)]]


def _plain(span: Span) -> Span:
    # A daemon's words may be among them.
    return Span(printable(span.text), span.style)


def _title(rows: Sequence[Row], state: TopState, clock: str, width: int) -> str:
    # What there is no room for is left out from the end, and whole.
    held = sum(row.entry["host-backed"] or 0 for row in rows)
    memory = sum(row.entry["guest-memory"] for row in rows)
    ill = sum(any(cause not in NOTES for cause in row.entry["health"]) for row in rows)
    rate = sum(row.rate for row in rows)
    title = f"{clock}  {len(rows)} machines, {ill} not healthy"
    for part in (
        f"host holds {short_size(held)} of {short_size(memory)}",
        f"{short_size(round(rate))}/s back",
        f"by {state.sort}",
    ):
        if len(title) + len("; ") + len(part) > width:
            break
        title += f"; {part}"
    return title


def _heading(label: int, length: int) -> str:
    return (
        f"{'VM':<{label}} {'NAME':<10} {'MEMORY':>6} {'HOST':>5} {'WHERE':<{length}} {'BACK/s':>6} {'LAST':>4} HEALTH"
    )


def _row(row: Row, label: int, length: int, symbols: Symbols) -> Line:
    entry = row.entry
    causes = entry["health"]
    style = Style.GOOD if not causes else Style.FAINT if all(cause in NOTES for cause in causes) else Style.BAD
    return line(
        f"{row.label:<{label}} {entry['name'][:10]:<10} {short_size(entry['guest-memory']):>6} "
        f"{short_size(entry['host-backed']):>5} ",
        *bar(entry, symbols, length),
        f" {short_size(round(row.rate)):>6} {short_time(entry['last-report']):>4} ",
        Span(health(entry), style),
    )


def _explained(rows: Sequence[Row], state: TopState, width: int) -> list[Line]:
    row = next((row for row in rows if row.label == state.selected), None)
    if row is None:
        return []
    findings = diagnose(read_facts(row.entry))
    if not findings:
        return [line(f"vm {row.label}: nothing is wrong")]
    lines: list[Line] = []
    for finding in findings[:2]:
        style = Style.BAD if finding.is_fault else Style.PLAIN
        for begin, text, of in (("! ", finding.sentence, style), ("  ", finding.remedy_for(row.label), Style.PLAIN)):
            wrapped = textwrap.wrap(text, max(width, 20), initial_indent=begin, subsequent_indent="  ")
            lines += [line(Span(each, of)) for each in wrapped]
    return lines
