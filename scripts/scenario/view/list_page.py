"""The free lists of one machine as lines: each from head to tail, with what is reported and the reported boundary."""

from collections.abc import Iterator, Sequence
from typing import Final

from guest.mm.views.free_lists import FreeListView
from host.terminal_view.bars import Symbols
from host.terminal_view.styled_line import Line, Span, Style, apart, column, cut, line, printable
from protocol.memory import PAGE_SIZE
from scripts.scenario.run_record import VmState
from scripts.scenario.scenario import VmKind
from scripts.scenario.view.overview import Pace, title_line
from scripts.scenario.view.picture import Picture, short_size

MIXED: Final = "+"
"""A column whose entries are reported in part."""

_NUMBERS: Final = 22
_STRIP_LEAST: Final = 4


def strip(view: FreeListView, width: int, symbols: Symbols) -> tuple[Span, ...]:
    """Return a list from head to tail in at most ``width`` columns, the boundary in a column of its own.

    A list with fewer entries than columns has one column for each.
    """
    if view.boundary is None:
        return tuple(_cells(view, 0, view.blocks, min(width, view.blocks), symbols))
    # Both sides are divided apart, so that no column has entries of both.
    columns = min(width - 1, view.blocks)
    above = round(columns * view.boundary / view.blocks)
    if 0 < view.boundary < view.blocks:
        above = max(1, min(above, columns - 1))
    return (
        *_cells(view, 0, view.boundary, above, symbols),
        Span(symbols.boundary, Style.TITLE),
        *_cells(view, view.boundary, view.blocks, columns - above, symbols),
    )


def _cells(view: FreeListView, begin: int, end: int, columns: int, symbols: Symbols) -> Iterator[Span]:
    count = end - begin
    for i in range(columns):
        yield _cell(view, begin + count * i // columns, begin + count * (i + 1) // columns, symbols)


def _cell(view: FreeListView, begin: int, end: int, symbols: Symbols) -> Span:
    reported = reported_between(view.runs, begin, end)
    if reported == 0:
        return Span(symbols.free, Style.FREE)
    if reported == end - begin:
        return Span(symbols.reported, Style.REPORTED)
    return Span(MIXED, Style.WARNING)


def reported_between(runs: Sequence[int], begin: int, end: int) -> int:
    """Return how many of the entries from ``begin`` to ``end`` are reported; ``runs`` as of :class:`FreeListView`."""
    reported = at = 0
    for number, length in enumerate(runs):
        if number % 2:
            reported += max(0, min(end, at + length) - max(begin, at))
        at += length
    return reported


def _row(view: FreeListView, width: int, symbols: Symbols) -> Line:
    blocks = f"{view.blocks}{'+' if view.is_cut else ''}"
    size = short_size((view.blocks << view.order) * PAGE_SIZE)
    head = f"{column(view.zone, 7)}{view.order:>3} {column(view.migratetype, 11)}{blocks:>6}{size:>6}"
    told = f"{view.reported_blocks:>5} " if view.reported_blocks else "    - "
    room = max(_STRIP_LEAST, width - len(head) - len(told))
    return line(Span(head), Span(told, Style.REPORTED), *strip(view, room, symbols))


def _legend(symbols: Symbols) -> Line:
    return line(
        Span("head to tail: ", Style.FAINT),
        Span(symbols.free, Style.FREE),
        Span(" not reported  ", Style.FAINT),
        Span(symbols.reported, Style.REPORTED),
        Span(" reported  ", Style.FAINT),
        Span(MIXED, Style.WARNING),
        Span(" both  ", Style.FAINT),
        Span(symbols.boundary, Style.TITLE),
        Span(" reported boundary", Style.FAINT),
    )


def list_page(
    picture: Picture, pace: Pace, symbols: Symbols, selected: int, offset: int, width: int, height: int
) -> list[Line]:
    """Return the lists of machine number ``selected`` from line ``offset`` on, as at most ``height`` lines."""
    spec = picture.scenario.vms[selected]
    word, style = picture.state_of(spec.name)
    reporter = "no reporter" if spec.reporter is None else f"reporter {spec.reporter}"
    if spec.kind is VmKind.LINUX:
        reporter = "a real kernel"
    lines = [
        title_line(picture, pace, width),
        line(
            *apart(
                [Span(f"free lists of {printable(spec.name)}: ", Style.TITLE), Span(word, style)],
                [Span(reporter)],
                width,
            )
        ),
    ]
    lists = picture.lists if picture.lists_of == spec.name else None
    if not lists:
        return [*lines, line(cut(_why_none(picture, spec.name), width))]
    head = f"{'zone':<7}{'ord':>3} {'type':<11}{'blocks':>6}{'size':>6}{'rep':>5} "
    rows = [_row(view, width, symbols) for view in lists]
    room = max(1, height - len(lines) - 2)
    first = max(0, min(offset, len(rows) - room))
    more = f"   lists {first + 1} to {min(len(rows), first + room)} of {len(rows)}" if len(rows) > room else ""
    lines += [line(Span(cut(head + "head ... tail" + more, width), Style.FAINT)), *rows[first : first + room]]
    return [*lines, _legend(symbols)][:height]


def _why_none(picture: Picture, vm: str) -> str:
    sample = picture.sample_of(vm)
    if sample.state is VmState.WAITING:
        return "It has not started."
    if sample.state.has_ended and sample.resident_bytes == 0:
        return "It lives no more."
    if picture.lists_of != vm:
        return "..."
    return "It does not tell its free lists."
