"""What ``status`` and ``show`` print: tables and lists of text, from entries of ``query-vms``."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from host.balloonctl.answers import NUMBER_MOST
from host.terminal_view.styled_line import printable
from protocol.memory import PAGE_SIZE

Entry = Mapping[str, Any]

UNKNOWN: Final = "-"
_GAP: Final = "  "


class Column(NamedTuple):
    """A column of the table: ``rank`` says which columns are left out first where the terminal is narrow, the highest
    first. Numbers are on the right."""

    title: str
    text: Callable[[Entry], str]
    rank: int = 0
    is_number: bool = True


def short_size(size: int | None) -> str:
    """Return a size in at most five characters: ``512M``, ``1.5G``. A hostile guest's may have more."""
    if size is None:
        return UNKNOWN
    value, units = float(max(-NUMBER_MOST, min(size, NUMBER_MOST))), "BKMGTPE"
    while abs(value) >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    digits = 0 if units[0] == "B" or abs(value) >= 9.95 or value == int(value) else 1
    return f"{value:.{digits}f}{units[0] if size else ''}"


def short_time(seconds: float | None) -> str:
    """Return a duration in at most four characters: ``3s``, ``12m``, ``5h``, ``9d``."""
    if seconds is None:
        return UNKNOWN
    for limit, unit, length in ((100, "s", 1), (6000, "m", 60), (360000, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def health(entry: Entry) -> str:
    """Return the health of a machine: ``ok``, or what is wrong."""
    return "broken" if "broken" in entry else ", ".join(entry["health"]) or "ok"


COLUMNS: Final = (
    Column("NAME", lambda entry: printable(entry["name"])[:15] or UNKNOWN, 3, is_number=False),
    Column("PID", lambda entry: str(entry["pid"] or UNKNOWN), 9),
    Column("MEMORY", lambda entry: short_size(entry["guest-memory"])),
    Column("FREE", lambda entry: short_size(entry["statistics"].get("memfree")), 4),
    Column("HOST", lambda entry: short_size(entry["host-backed"])),
    Column("REPORTED", lambda entry: short_size(entry["reported-bytes"]), 6),
    Column("DISCARDED", lambda entry: short_size(entry["discarded-bytes"])),
    Column("BALLOON", lambda entry: short_size(entry["balloon-actual"]), 5),
    Column("LAST", lambda entry: short_time(entry["last-report"]), 2),
    Column("HEALTH", health, is_number=False),
)
"""After the machine's label. FREE is what the guest last said, HOST what the host holds, LAST the last report's age."""


def status_table(rows: Sequence[tuple[str, Entry]], width: int | None) -> list[str]:
    """Return the lines of the table: a title, then one for each label and entry. Columns are left out until ``width``
    characters suffice, and the last one is cut; None is any width."""
    titles = ["VM", *(column.title for column in COLUMNS)]
    cells = [[label, *(column.text(entry) for column in COLUMNS)] for label, entry in rows]
    widths = [max(len(line[at]) for line in (titles, *cells)) for at in range(len(titles))]
    kept = _columns_within(widths, width)
    lines = []
    for line in (titles, *cells):
        texts = [
            line[at].rjust(widths[at]) if at and COLUMNS[at - 1].is_number else line[at].ljust(widths[at])
            for at in kept
        ]
        lines.append(cut(_GAP.join(texts).rstrip(), width))
    return lines


def _columns_within(widths: Sequence[int], width: int | None) -> list[int]:
    kept = list(range(len(widths)))
    while width is not None and sum(widths[at] + len(_GAP) for at in kept) - len(_GAP) > width:
        spare = [at for at in kept if at and COLUMNS[at - 1].rank]
        if not spare:
            break
        kept.remove(max(spare, key=lambda at: COLUMNS[at - 1].rank))
    return kept


def cut(text: str, width: int | None) -> str:
    """Return ``text`` in at most ``width`` characters; three dots stand for what is left out."""
    return text if width is None or len(text) <= width else text[: max(width - 1, 0)] + "\u2026"


def facts_list(entry: Entry, width: int | None = None) -> list[str]:
    """Return the lines of ``show``: every fact under its name, in at most ``width`` characters; None is any width."""
    lines: list[str] = []
    for name, value in entry.items():
        if name in ("acknowledge", "discard"):
            lines += _fact(f"{name}:", _latency(value), width)
        elif isinstance(value, Mapping) and value:
            lines.append(f"{name}:")
            for inner, each in value.items():
                lines += _fact(f"  {inner}", _shown(inner, each), width)
        else:
            lines += _fact(f"{name}:", _shown(name, value), width)
    return lines


def _fact(name: str, text: str, width: int | None) -> list[str]:
    begin = f"{name:<22} "
    return wrapped(begin + text, width, len(begin))


def wrapped(text: str, width: int | None, indent: int) -> list[str]:
    """Return ``text`` in lines of at most ``width`` characters, but 40 at least; ``indent`` blanks begin those after
    the first. None is any width."""
    if width is None or len(text) <= width:
        return [text]
    if width < 40 + indent // 2:
        indent = 2
    return textwrap.wrap(text, max(width, 40), subsequent_indent=" " * indent, break_on_hyphens=False)


def _latency(value: Mapping[str, Any]) -> str:
    chains = sum(value["counts"])
    if not chains:
        return UNKNOWN
    us = 1e6 * value["seconds"] / chains
    return f"{f'{us:.0f} us' if us < 1000 else f'{us / 1000:.1f} ms'} on average of {chains} chains"


_TIMES: Final = frozenset({"age", "last-report", "statistics-age", "statistics-unanswered", "running-for", "seconds"})
_SIZES: Final = frozenset({"memory", "page-size", "host-backed", "mean-range", "memfree", "memtot", "avail", "caches"})


def _shown(name: str, value: object) -> str:
    match value:
        case None:
            return UNKNOWN
        case bool():
            return "yes" if value else "no"
        case int() | float() if name in _TIMES:
            return f"{value:.1f} s"
        case int() if name in _SIZES or name.endswith("-bytes") or name.startswith(("guest-", "balloon-")):
            return f"{value} ({short_size(value)})"
        case Mapping():
            return ", ".join(f"{key} {_shown(key, each)}" for key, each in value.items()) or UNKNOWN
        case list():
            return " ".join(map(str, value)) or UNKNOWN
        case str():
            return printable(value) or UNKNOWN
    return str(value)


def event_line(clock: str, label: str, event: str, data: Mapping[str, Any]) -> str:
    """Return the line of ``watch`` about one event."""
    # What a machine did not do in this second, and what does not apply, is left out.
    left_out = (None, 0) if event == "VM_TRAFFIC" else (None,)
    told = {name: value for name, value in data.items() if name != "vm" and value not in left_out}
    fields = ", ".join(_field(name, value) for name, value in told.items())
    return f"{clock} {label:<6} {event.removeprefix('VM_').lower().replace('_', ' '):<16} {fields}".rstrip()


def _field(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and (name.endswith("bytes") or name == "actual"):
        return f"{name.removesuffix('-bytes')} {short_size(value)}"
    if isinstance(value, int) and name.endswith("-pages"):
        return f"{name.removesuffix('-pages')} {short_size(value * PAGE_SIZE)}"
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    if isinstance(value, float) and name in _TIMES:
        return f"{name} {value:.1f}"
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {printable(str(value))}"
