"""Bars of characters. Each kind of memory has a character of its own, so a bar can be read without colours."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from host.terminal_view.styled_line import Span, Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """What bars are drawn with, one column each."""

    in_use: str
    free: str
    reported: str
    balloon: str
    resident: str
    empty: str
    boundary: str
    up_down: str
    """The keys that select."""


UNICODE: Final = Symbols(
    in_use="█", free="▒", reported="░", balloon="o", resident="■", empty="·", boundary="│", up_down="↑↓"
)
ASCII: Final = Symbols(
    in_use="#", free="%", reported=":", balloon="o", resident="=", empty=".", boundary="|", up_down="up/down"
)


class Part(NamedTuple):
    """One part of a bar: what it is drawn with, and how much of the whole it is."""

    symbol: str
    style: Style
    amount: int


def bar(parts: Iterable[Part], whole: int, width: int, empty: str) -> tuple[Span, ...]:
    """Return a bar of ``width`` columns, all parts of ``whole``; what they leave over is ``empty``.

    Boundaries are rounded, not the parts, so that parts that add up to the whole fill the bar exactly. Parts beyond the
    whole are cut.
    """
    spans = []
    total = at = 0
    for part in parts:
        total += max(0, part.amount)
        end = min(width, round(width * total / whole)) if whole > 0 else 0
        if end > at:
            spans.append(Span(part.symbol * (end - at), part.style))
            at = end
    if at < width:
        spans.append(Span(empty * (width - at), Style.FAINT))
    return tuple(spans)
