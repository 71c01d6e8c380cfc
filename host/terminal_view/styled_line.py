"""Lines of text with styles, as a view computes them. A terminal may lack colours: a style only supports the text."""

import enum
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

UNPRINTABLE: Final = "?"
"""Stands for each character of a foreign text that a terminal would obey, not show, or show in more than one column."""

ELLIPSIS: Final = "~"
"""Ends a text that was cut."""


class Style(enum.Enum):
    """What a piece of text is, for a terminal that can show it."""

    PLAIN = enum.auto()
    TITLE = enum.auto()
    FAINT = enum.auto()
    GOOD = enum.auto()
    WARNING = enum.auto()
    BAD = enum.auto()
    SELECTED = enum.auto()
    """The line that keys act on."""
    IN_USE = enum.auto()
    """Memory that programs of a guest hold."""
    FREE = enum.auto()
    """Memory that a guest has free, and has not reported."""
    REPORTED = enum.auto()
    """Memory that a guest has free and has reported."""
    BALLOON = enum.auto()
    """Memory in a balloon."""
    RESIDENT = enum.auto()
    """Memory that the host holds for a guest."""


class Span(NamedTuple):
    """Text in one style. Each character takes one column."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Line:
    """One line without a line break. ``rank`` says how soon it gives way in a low window: highest first, 0 never."""

    spans: tuple[Span, ...] = ()
    rank: int = 0

    @property
    def text(self) -> str:
        """Return its text without styles."""
        return "".join(span.text for span in self.spans)


def line(*pieces: str | Span, rank: int = 0) -> Line:
    """Return a line of these pieces; those that are no spans are plain."""
    return Line(tuple(Span(piece) if isinstance(piece, str) else piece for piece in pieces), rank)


def printable(text: str) -> str:
    """Return a foreign text, such as a name, as a terminal may show it: one column for each character, no controls."""
    return "".join(character if _is_plain(character) else UNPRINTABLE for character in text)


def _is_plain(character: str) -> bool:
    # Letters, numbers, punctuation, symbols, and the blank itself. Not: controls, formats such as a change of the
    # writing direction, combining marks, line separators, and what is wide.
    category = unicodedata.category(character)
    return character == " " or (category[0] in "LNPS" and unicodedata.east_asian_width(character) not in "WF")


def cut(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns; the end of a longer one is left out and marked."""
    if len(text) <= width:
        return text
    return text[: width - 1] + ELLIPSIS if width > 0 else ""


def column(text: str, width: int) -> str:
    """Return ``text`` in exactly ``width`` columns, at the left."""
    return cut(text, width).ljust(width)


def clipped(spans: Iterable[Span], width: int) -> tuple[Span, ...]:
    """Return the first ``width`` columns of ``spans``."""
    kept: list[Span] = []
    left = width
    for span in spans:
        if left <= 0:
            break
        kept.append(Span(span.text[:left], span.style))
        left -= len(span.text)
    return tuple(kept)


def apart(left: Sequence[Span], right: Sequence[Span], width: int) -> tuple[Span, ...]:
    """Return ``left`` at the left and ``right`` at the right of ``width`` columns. In too few, ``left`` is cut."""
    taken = sum(len(span.text) for span in right)
    room = max(0, width - taken - 1)
    shown = clipped(left, room)
    blanks = width - taken - sum(len(span.text) for span in shown)
    return clipped((*shown, Span(" " * max(0, blanks)), *right), width)


def wrapped(pieces: Sequence[str], width: int, indent: int) -> list[str]:
    """Return lines of at most ``width`` columns with as many pieces as fit, two blanks between them.

    The lines after the first are indented. A piece that is too long for a line is cut.
    """
    lines: list[str] = []
    current = ""
    for piece in pieces:
        longer = f"{current}  {piece}" if current.strip() else current + piece
        if current.strip() and len(longer) > width:
            lines.append(current)
            longer = " " * indent + piece
        current = cut(longer, width)
    return [*lines, current] if current.strip() else lines


def fitting(lines: Sequence[Line], height: int) -> list[Line]:
    """Return at most ``height`` of ``lines``. Those of the highest rank give way first, from the last one on."""
    shown = list(lines)
    while len(shown) > height:
        highest = max(entry.rank for entry in shown)
        if highest == 0:
            return shown[:height]
        del shown[max(index for index, entry in enumerate(shown) if entry.rank == highest)]
    return shown
