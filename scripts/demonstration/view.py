"""State to lines of text: the live view for a terminal, and the plain table. Pure: knows no terminal."""

from collections.abc import Iterable, Sequence
from typing import Final

from host.terminal_view import bars
from host.terminal_view.bars import ASCII, UNICODE, Part, Symbols
from host.terminal_view.styled_line import Line, Span, Style, line
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


STEPS: Final = "▁▂▃▄▅▆▇█"
ASCII_STEPS: Final = "_.:-=+*#"
"""What sparklines are drawn with."""


def steps_of(symbols: Symbols) -> str:
    """Return the steps of a sparkline beside bars of these symbols."""
    return ASCII_STEPS if symbols is ASCII else STEPS


def text_line(text: str, style: Style = Style.PLAIN, rank: int = 0) -> Line:
    """Return a line in one style. ``rank`` says how soon it gives way in a low window: highest first, 0 never."""
    return line(Span(text, style), rank=rank)


def mib(size: int | None) -> str:
    """Return bytes as whole MiB, ``-`` for unknown."""
    return "-" if size is None else f"{size / MIB:.0f}"


def bar(parts: Iterable[tuple[str, int]], whole: int, width: int, empty: str) -> str:
    """Return a bar of ``width`` columns. Each part is (symbol, amount) of ``whole``; the rest is ``empty``."""
    spans = bars.bar([Part(symbol, Style.PLAIN, amount) for symbol, amount in parts], whole, width, empty)
    return "".join(span.text for span in spans)


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
    used = bar([(symbols.in_use, host.used_bytes)], host.budget_bytes, columns, symbols.empty)
    numbers = f"{mib(host.used_bytes)} of {mib(host.budget_bytes)} MiB{'  FULL' if full else ''}"
    history = sparkline(host.history, host.budget_bytes, columns, steps_of(symbols))
    return [
        text_line(_apart(f"HOST    {used}  {numbers}", "", width), Style.WARNING if full else Style.PLAIN),
        text_line(f"        {history.ljust(columns)}  last {round(columns * TICK_SECONDS)} s", Style.FAINT, rank=3),
    ]


def _inside(vm: VmState) -> str:
    if vm.pid is not None and vm.free_bytes is None:
        return "(the guest has not told yet what is in use)"
    allocated, free, reported = mib(vm.allocated_bytes), mib(vm.free_bytes), mib(vm.reported_bytes)
    return f"allocated {allocated}, free {free}, of it reported {reported} MiB"


def _vm_lines(vm: VmState, symbols: Symbols, width: int) -> list[Line]:
    if vm.carried_bytes is None:
        # Not told, or a real kernel, which tells it late: after it has freed everything, almost nothing is in use.
        parts = [(symbols.free if vm.phase == "rest" else symbols.in_use, vm.resident_bytes)]
    else:
        # Resident but not in use: freed memory that the host still carries. This is what reporting is about.
        held = min(vm.carried_bytes, vm.resident_bytes)
        parts = [(symbols.in_use, vm.resident_bytes - held), (symbols.free, held)]
    memory = bar(parts, vm.memory_bytes, _bar_columns(width), symbols.empty)
    rate = sparkline(vm.report_history, 8, 16, steps_of(symbols))
    return [
        text_line(_apart(f"VM {vm.name}    {vm.kind}", vm.status, width), Style.TITLE),
        text_line(f"        {memory}  {mib(vm.resident_bytes)} of {mib(vm.memory_bytes)} MiB resident"),
        text_line(f"        {_inside(vm)}", rank=1),
        text_line(
            f"        reports {rate.rjust(16)}  {vm.reports_per_second:.0f}/s, {vm.reports} for"
            f" {mib(vm.discarded_bytes)} MiB",
            rank=2,
        ),
    ]


def _fitting(lines: Sequence[Line], height: int) -> list[Line]:
    # The lines of the highest rank give way first, all of one rank together.
    shown = list(lines)
    while len(shown) > height and (highest := max((entry.rank for entry in shown), default=0)):
        shown = [entry for entry in shown if entry.rank < highest]
    return shown


def live_view(picture: Picture, symbols: Symbols = UNICODE, width: int = WIDTH, height: int = 24) -> list[Line]:
    """Return the picture as at most ``height`` lines of at most ``width`` columns.

    In a low window the lines that say least give way, in a narrow one what is at the right. The newest part of the
    story always stays.
    """
    empty = text_line("", rank=5)
    any_real = any(vm.kind == REAL_KERNEL for vm in picture.vms)
    lines = [
        text_line(_apart(picture.round_title, f"about {picture.seconds_left} s left", width), Style.TITLE),
        text_line(_apart(picture.title, f"limit: {picture.host.budget_source}", width), Style.FAINT, rank=4),
        text_line(_INSIDE_AGE_REAL if any_real else _INSIDE_AGE, Style.FAINT, rank=4),
        empty,
    ]
    lines += _host_lines(picture.host, symbols, width)
    for vm in picture.vms:
        lines += [empty, *_vm_lines(vm, symbols, width)]
    lines.append(
        text_line(
            f"        {symbols.in_use} in use   {symbols.free} freed, yet carried   {symbols.empty} costs nothing",
            Style.FAINT,
            rank=2,
        )
    )
    lines.append(empty)
    lines = _fitting(lines, height - min(len(picture.story), STORY_LEAST))
    room = max(0, min(STORY_LINES, height - len(lines)))
    story = picture.story[-room:] if room else []
    lines += [text_line(f"{seconds:5.1f} s {text}") for seconds, text in story]
    return [text_line(entry.text[:width].rstrip(), entry.spans[0].style) for entry in lines[:height]]


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
