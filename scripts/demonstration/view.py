"""State to lines of text: the live view for a terminal, and the plain table. Pure: knows no terminal."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.units import MIB
from scripts.demonstration.state import TICK_SECONDS, HostState, Picture, VmState

WIDTH: Final = 79
"""Columns of the live view. One less than a terminal of 80, which would wrap at its last one."""

BAR: Final = 44
BESIDE_BAR: Final = WIDTH - BAR
"""Columns of a bar, and of what stands to both sides of it. In a narrower window the bar is shorter."""

STORY_LINES: Final = 6
STORY_LEAST: Final = 2
"""Most lines of the story, and those for which other lines give way."""

REAL_KERNEL: Final = "real Linux kernel"
"""The kind of a machine that tells less often what is inside it."""

_INSIDE_AGE: Final = "Inside a VM: as its guest told up to 0.25 s ago."
_INSIDE_AGE_REAL: Final = "Inside a VM: as told up to 0.25 s ago, by a real kernel 2 s ago."
TABLE_NOTE: Final = (
    "MiB; host and resid. are of the time shown, alloc, free and rep. as the guest told up to 0.25 s before"
    " (a real kernel: 2 s)"
)
"""The host reads its own figures when it shows them; what is inside a guest is known from the guest's last event."""


class Style(enum.Enum):
    """What a line is, for a terminal that can show it."""

    PLAIN = enum.auto()
    TITLE = enum.auto()
    FAINT = enum.auto()
    WARNING = enum.auto()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the live view, without a line break."""

    text: str
    style: Style = Style.PLAIN
    rank: int = 0
    """How soon it gives way in a low window: those of the highest rank first, those of rank 0 never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """What bars and sparklines are drawn with."""

    used: str
    held: str
    empty: str
    steps: str


UNICODE: Final = Symbols(used="█", held="▒", empty="·", steps="▁▂▃▄▅▆▇█")
ASCII: Final = Symbols(used="#", held="%", empty=".", steps="_.:-=+*#")


def mib(size: int | None) -> str:
    """Return bytes as whole MiB, ``-`` for unknown."""
    return "-" if size is None else f"{size / MIB:.0f}"


def bar(parts: Iterable[tuple[str, int]], whole: int, width: int, empty: str) -> str:
    """Return a bar of ``width`` columns. Each part is (symbol, amount) of ``whole``; the rest is ``empty``.

    Boundaries are rounded, not the parts, so that parts that add up to the whole fill the bar exactly.
    """
    text = ""
    total = 0
    for symbol, amount in parts:
        total += amount
        end = min(width, round(width * total / whole)) if whole > 0 else 0
        text += symbol * (end - len(text))
    return text + empty * (width - len(text))


def sparkline(values: Sequence[int], most: int, width: int, steps: str) -> str:
    """Return the last ``width`` values as one character each, from the lowest step (0) to the highest (``most``)."""
    shown = list(values)[-width:]
    return "".join(steps[min(len(steps) - 1, -(-value * (len(steps) - 1) // max(most, 1)))] for value in shown)


def _apart(left: str, right: str, width: int) -> str:
    space = width - len(left) - len(right)
    return f"{left}{' ' * space}{right}" if space > 0 else left


def _bar_columns(width: int) -> int:
    return max(1, min(BAR, width - BESIDE_BAR))


def _host_lines(host: HostState, symbols: Symbols, width: int) -> list[Line]:
    full = host.used_bytes > host.budget_bytes * 0.95
    columns = _bar_columns(width)
    used = bar([(symbols.used, host.used_bytes)], host.budget_bytes, columns, symbols.empty)
    numbers = f"{mib(host.used_bytes)} of {mib(host.budget_bytes)} MiB{'  FULL' if full else ''}"
    history = sparkline(host.history, host.budget_bytes, columns, symbols.steps)
    return [
        Line(_apart(f"HOST    {used}  {numbers}", "", width), Style.WARNING if full else Style.PLAIN),
        Line(f"        {history.ljust(columns)}  last {round(columns * TICK_SECONDS)} s", Style.FAINT, rank=3),
    ]


def _inside(vm: VmState) -> str:
    if vm.pid is not None and vm.free_bytes is None:
        return "(the guest has not told yet what is in use)"
    allocated, free, reported = mib(vm.allocated_bytes), mib(vm.free_bytes), mib(vm.reported_bytes)
    return f"allocated {allocated}, free {free}, of it reported {reported} MiB"


def _vm_lines(vm: VmState, symbols: Symbols, width: int) -> list[Line]:
    if vm.carried_bytes is None:
        # Not told, or a real kernel, which tells it late: after it has freed everything, almost nothing is in use.
        parts = [(symbols.held if vm.phase == "rest" else symbols.used, vm.resident_bytes)]
    else:
        # Resident but not in use: freed memory that the host still carries. This is what reporting is about.
        held = min(vm.carried_bytes, vm.resident_bytes)
        parts = [(symbols.used, vm.resident_bytes - held), (symbols.held, held)]
    memory = bar(parts, vm.memory_bytes, _bar_columns(width), symbols.empty)
    rate = sparkline(vm.report_history, 8, 16, symbols.steps)
    return [
        Line(_apart(f"VM {vm.name}    {vm.kind}", vm.status, width), Style.TITLE),
        Line(f"        {memory}  {mib(vm.resident_bytes)} of {mib(vm.memory_bytes)} MiB resident"),
        Line(f"        {_inside(vm)}", rank=1),
        Line(
            f"        reports {rate.rjust(16)}  {vm.reports_per_second:.0f}/s, {vm.reports} for"
            f" {mib(vm.discarded_bytes)} MiB",
            rank=2,
        ),
    ]


def _fitting(lines: Sequence[Line], height: int) -> list[Line]:
    # The lines of the highest rank give way first, all of one rank together.
    shown = list(lines)
    while len(shown) > height and (highest := max((line.rank for line in shown), default=0)):
        shown = [line for line in shown if line.rank < highest]
    return shown


def live_view(picture: Picture, symbols: Symbols = UNICODE, width: int = WIDTH, height: int = 24) -> list[Line]:
    """Return the picture as at most ``height`` lines of at most ``width`` columns.

    In a low window the lines that say least give way, in a narrow one what is at the right. The newest part of the
    story always stays.
    """
    empty = Line("", rank=5)
    any_real = any(vm.kind == REAL_KERNEL for vm in picture.vms)
    lines = [
        Line(_apart(picture.round_title, f"about {picture.seconds_left} s left", width), Style.TITLE),
        Line(_apart(picture.title, f"limit: {picture.host.budget_source}", width), Style.FAINT, rank=4),
        Line(_INSIDE_AGE_REAL if any_real else _INSIDE_AGE, Style.FAINT, rank=4),
        empty,
    ]
    lines += _host_lines(picture.host, symbols, width)
    for vm in picture.vms:
        lines += [empty, *_vm_lines(vm, symbols, width)]
    lines.append(
        Line(
            f"        {symbols.used} in use   {symbols.held} freed, yet carried   {symbols.empty} costs nothing",
            Style.FAINT,
            rank=2,
        )
    )
    lines.append(empty)
    lines = _fitting(lines, height - min(len(picture.story), STORY_LEAST))
    room = max(0, min(STORY_LINES, height - len(lines)))
    story = picture.story[-room:] if room else []
    lines += [Line(f"{seconds:5.1f} s {text}") for seconds, text in story]
    return [Line(line.text[:width].rstrip(), line.style) for line in lines[:height]]


def table_header(names: Sequence[str]) -> list[str]:
    """Return the two header lines of the plain table. All sizes in it are MiB."""
    group = "{:^44}"
    first = " " * 14 + " |" + "|".join(group.format(f"VM {name}") for name in names)
    column = "{:>6}{:>6}{:>6}{:>6}{:>5}  {:<13}"
    second = f"{'time':>6}{'host':>8} |" + "|".join(
        column.format("resid.", "alloc", "free", "rep.", "r/s", "phase") for _ in names
    )
    return [first.rstrip(), second.rstrip()]


def table_row(picture: Picture) -> str:
    """Return one line of the plain table for this moment."""
    cells = [
        f"{mib(vm.resident_bytes):>6}{mib(vm.allocated_bytes):>6}{mib(vm.free_bytes):>6}{mib(vm.reported_bytes):>6}"
        f"{vm.reports_per_second:>5.0f}  {(vm.phase or vm.status)[:13]:<13}"
        for vm in picture.vms
    ]
    return f"{picture.seconds:>5.1f}s{mib(picture.host.used_bytes):>8} |{'|'.join(cells)}".rstrip()
