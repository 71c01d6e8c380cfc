"""A picture as lines: the host, one row a machine, the ledger, what has happened. Pure: knows no terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from host.terminal_view.bars import Part, Symbols, bar
from host.terminal_view.styled_line import Line, Span, Style, apart, column, cut, fitting, line, printable, wrapped
from scripts.scenario.run_record import VmSample, VmState
from scripts.scenario.scenario import VmKind, VmSpec
from scripts.scenario.view.picture import Note, Picture, short_size, short_time

FULL: Final = 0.95
"""The part of the budget from which the host counts as full."""

_NUMBERS: Final = 12
_WIDE: Final = 110
"""Columns from which a row has its sizes as numbers too."""
_LEAST_NOTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How time goes on. ``speed`` is None for real time."""

    speed: float | None = None
    is_paused: bool = False
    is_leaving: bool = False

    @property
    def text(self) -> str:
        """Return it in words."""
        if self.is_leaving:
            return "ENDING"
        pace = "real time" if self.speed is None else "unlimited" if self.speed == float("inf") else f"{self.speed:g}x"
        return f"PAUSED ({pace})" if self.is_paused else pace


def title_line(picture: Picture, pace: Pace, width: int) -> Line:
    """Return the first line: scenario and policy, pace and time."""
    scenario = picture.scenario
    time = f"{pace.text}  {short_time(picture.sample.t)} of {short_time(scenario.duration)}"
    style = Style.WARNING if pace.is_paused or pace.is_leaving else Style.TITLE
    title = f"{printable(scenario.name)}, policy {printable(picture.policy)}"
    return line(*apart([Span(title, Style.TITLE)], [Span(time, style)], width))


def host_lines(picture: Picture, symbols: Symbols, width: int) -> list[Line]:
    """Return the host's bar against the budget, and the score so far."""
    budget, used = picture.scenario.budget_bytes, picture.sample.used_bytes
    share = used / budget if budget else 0.0
    style = Style.BAD if share > FULL else Style.RESIDENT
    numbers = f" {short_size(used)} of {short_size(budget)} {share:4.0%}{' FULL' if share > FULL else ''}"
    label, numbers = "host  ", numbers.ljust(22)
    columns = max(4, width - len(label) - len(numbers))
    host_bar = bar([Part(symbols.resident, style, used)], budget, columns, symbols.empty)
    figures = picture.figures
    pressure = picture.sample.pressure
    words = [
        "pressure -" if pressure is None else f"pressure {pressure:.1f} %",
        f"swap {short_size(figures.swapped_bytes)} of {short_size(picture.scenario.swap_bytes)}"
        if picture.scenario.swap_bytes
        else "no swap",
        f"{figures.gib_minutes:.3f} GiB*min",
        f"peak {short_size(figures.peak_bytes)}",
        f"OOM {figures.oom_events}",
        f"refaulted {short_size(figures.refaulted_bytes)}",
        f"stalled {figures.stall_seconds:.2f} s",
    ]
    lines = wrapped([" " * len(label) + words[0], *words[1:]], width, len(label))
    is_bad = Style.BAD if figures.oom_events else Style.PLAIN
    return [
        line(Span(label, Style.TITLE), *host_bar, Span(numbers, style if share > FULL else Style.PLAIN)),
        *(line(Span(text, is_bad), rank=rank) for rank, text in enumerate(lines)),
    ]


@dataclass(frozen=True, slots=True)
class Columns:
    """How wide the columns of the rows are."""

    name: int
    state: int
    bar: int
    has_sizes: bool


def columns_of(specs: Sequence[VmSpec], width: int) -> Columns:
    """Return the widths for these machines in a window of ``width`` columns."""
    name = max(7, min(max((len(spec.name) for spec in specs), default=0), 12 if width < _WIDE else 24, width // 5))
    state = 10
    has_sizes = width >= _WIDE
    taken = 2 + name + 1 + state + 1 + 1 + 1 + _NUMBERS + (4 * 6 if has_sizes else 0)
    return Columns(name, state, max(3, (width - taken) // 2), has_sizes)


def _guest_bar(spec: VmSpec, sample: VmSample, columns: int, symbols: Symbols) -> tuple[Span, ...]:
    if sample.resident_bytes and spec.kind is VmKind.LINUX and not sample.free_bytes:
        return (Span(column("not told", columns), Style.FAINT),)
    parts = (
        Part(symbols.in_use, Style.IN_USE, sample.allocated_bytes),
        Part(symbols.free, Style.FREE, sample.free_bytes - sample.reported_bytes),
        Part(symbols.reported, Style.REPORTED, sample.reported_bytes),
        Part(symbols.balloon, Style.BALLOON, sample.balloon_bytes),
    )
    return bar(parts, spec.memory_bytes, columns, symbols.empty)


def vm_line(picture: Picture, spec: VmSpec, columns: Columns, symbols: Symbols, *, is_selected: bool) -> Line:
    """Return the row of one machine."""
    sample = picture.sample_of(spec.name)
    word, style = picture.state_of(spec.name)
    mark = Style.SELECTED if is_selected else Style.PLAIN
    resident = bar(
        [Part(symbols.resident, Style.RESIDENT, sample.resident_bytes)], spec.memory_bytes, columns.bar, symbols.empty
    )
    sizes = (sample.allocated_bytes, sample.free_bytes, sample.reported_bytes, sample.balloon_bytes)
    return line(
        Span("> " if is_selected else "  ", Style.TITLE),
        Span(column(printable(spec.name), columns.name), mark),
        " ",
        Span(column(word, columns.state), style),
        " ",
        *_guest_bar(spec, sample, columns.bar, symbols),
        " ",
        *resident,
        f" {short_size(sample.resident_bytes):>5}/{short_size(spec.memory_bytes):<5}",
        "".join(f"{short_size(size):>6}" for size in sizes) if columns.has_sizes else "",
    )


def head_line(columns: Columns, symbols: Symbols) -> Line:
    """Return the heads of the columns, which are also the legend of the bars."""
    wide = columns.bar >= 30
    inside = [
        (f"{symbols.in_use}", "allocated " if wide else "alloc ", Style.IN_USE),
        (f"{symbols.free}", "free ", Style.FREE),
        (f"{symbols.reported}", "reported " if wide else "rep ", Style.REPORTED),
        (f"{symbols.balloon}", "balloon", Style.BALLOON),
    ]
    spans = [span for symbol, word, style in inside for span in (Span(symbol, style), Span(word, Style.FAINT))]
    used = 0
    kept: list[Span] = []
    for symbol, word in zip(spans[::2], spans[1::2], strict=True):
        if used + len(symbol.text) + len(word.text.rstrip()) > columns.bar:
            break
        kept += [symbol, word]
        used += len(symbol.text) + len(word.text)
    host = column("resident", columns.bar - 1)
    return line(
        Span(f"  {column('machine', columns.name)} {column('state', columns.state)} ", Style.FAINT),
        *kept,
        Span(" " * max(0, columns.bar - used + 1)),
        Span(symbols.resident, Style.RESIDENT),
        Span(f"{host} {' host/memory':<12}", Style.FAINT),
        Span(" alloc  free   rep  ball" if columns.has_sizes else "", Style.FAINT),
    )


def ledger_lines(picture: Picture, selected: VmSpec | None, width: int) -> list[Line]:
    """Return what the selected machine has, or all together, and why free memory of it is still backed."""
    names = [spec.name for spec in picture.scenario.vms] if selected is None else [selected.name]
    samples = [picture.sample_of(name) for name in names]
    name = "all" if selected is None else printable(selected.name)
    sizes = [
        f"{name}: allocated {short_size(sum(sample.allocated_bytes for sample in samples))}",
        f"free {short_size(sum(sample.free_bytes for sample in samples))}",
        f"reported {short_size(sum(sample.reported_bytes for sample in samples))}",
        f"balloon {short_size(sum(sample.balloon_bytes for sample in samples))}"
        f" of {short_size(sum(sample.target_bytes for sample in samples))}",
        f"cache {short_size(sum(sample.cache_bytes for sample in samples))}",
    ]
    if selected is not None and samples[0].state is VmState.WAITING:
        sizes = [f"{name}: starts at {short_time(selected.start)}, {short_size(selected.memory_bytes)}"]
    elif selected is not None and selected.kind is VmKind.LINUX:
        sizes = [f"{name}: a real kernel, which does not tell what is inside"]
    lines = [line(text, rank=rank) for rank, text in zip((0, 3, 3), wrapped(sizes, width, 2), strict=False)]
    ledgers = [sample.ledger for sample in samples if sample.ledger is not None]
    if not ledgers:
        return lines
    causes: dict[str, int] = {}
    for ledger in ledgers:
        for cause, size in ledger.causes.items():
            causes[cause] = causes.get(cause, 0) + size
    largest = sorted((cause for cause in causes if causes[cause]), key=lambda cause: -causes[cause])
    words = [f"free, yet backed {short_size(sum(causes.values()))}{':' if largest else ''}"]
    words += [f"{cause.replace('_', ' ')} {short_size(causes[cause])}" for cause in largest]
    return [*lines, *(line(text, rank=min(rank, 3)) for rank, text in enumerate(wrapped(words, width, 2)))]


def note_line(note: Note, width: int) -> Line:
    """Return one line of what has happened."""
    time = f"{short_time(note.t):>9}  "
    return line(Span(time, Style.FAINT), Span(cut(note.text, width - len(time)), note.style))


def shown_rows(count: int, selected: int | None, room: int) -> range:
    """Return which of ``count`` rows are shown in ``room`` lines: the selected one among them."""
    if count <= room:
        return range(count)
    first = 0 if selected is None else max(0, min(selected - room // 2, count - room))
    return range(first, first + room)


def overview(
    picture: Picture, pace: Pace, symbols: Symbols, selected: int | None, width: int, height: int
) -> list[Line]:
    """Return the picture as at most ``height`` lines. ``selected`` is a machine's number, None for all together.

    In a low window the lines that say least give way first; the rows of machines are a window of those that there are.
    """
    specs = picture.scenario.vms
    chosen = None if selected is None else specs[selected]
    above = [title_line(picture, pace, width), *host_lines(picture, symbols, width), line(rank=5)]
    columns = columns_of(specs, width)
    above.append(head_line(columns, symbols))
    below = [line(rank=5), *ledger_lines(picture, chosen, width)]
    if picture.decision is not None:
        decision = picture.decision
        time = f"decided at {short_time(decision.t)}: "
        below.append(line(Span(time, Style.FAINT), Span(cut(decision.text, width - len(time)), decision.style), rank=2))
    notes = list(picture.notes)
    least = min(len(notes), _LEAST_NOTES)
    rows_wanted = min(len(specs), max(2, height // 3))
    frame = fitting([*above, *below], max(3, height - rows_wanted - least))
    kept_above = sum(1 for entry in frame if any(entry is other for other in above))
    room = max(1, height - len(frame) - least)
    shown = shown_rows(len(specs), selected, room if len(specs) <= room else max(1, room - 1))
    rows = [vm_line(picture, specs[i], columns, symbols, is_selected=i == selected) for i in shown]
    if len(shown) < len(specs) and room > 1:
        rows.append(line(Span(f"  {shown.start + 1} to {shown.stop} of {len(specs)} machines", Style.FAINT)))
    lines = [*frame[:kept_above], *rows, *frame[kept_above:]]
    left = height - len(lines)
    lines += [note_line(note, width) for note in notes[len(notes) - min(left, len(notes)) :]] if left > 0 else []
    return lines[:height]
