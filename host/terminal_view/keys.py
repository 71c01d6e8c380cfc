"""Keys of a view: what they are called, the line at the bottom that names them, and the page that explains them."""

from collections.abc import Sequence
from dataclasses import dataclass

from host.terminal_view.styled_line import Line, Span, Style, cut, line, wrapped


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One thing that a key does. ``label`` is short, ``meaning`` a sentence for the help page."""

    shown: str
    label: str
    meaning: str


def key_line(keys: Sequence[Key], width: int) -> Line:
    """Return the line that names the keys: as many as fit, in their order."""
    words = wrapped([f"{key.shown} {key.label}" for key in keys], width, 0)
    return line(Span((words or [""])[0].ljust(width), Style.SELECTED))


def help_lines(title: str, keys: Sequence[Key], notes: Sequence[Sequence[Span]], width: int) -> list[Line]:
    """Return a page that explains the keys, followed by ``notes``."""
    column = max(len(key.shown) for key in keys) + 2
    lines = [line(Span(cut(title, width), Style.TITLE)), line(rank=2)]
    lines += [line(Span(f"{key.shown:<{column}}", Style.TITLE), cut(key.meaning, width - column)) for key in keys]
    return [*lines, line(rank=2), *(line(*note, rank=1) for note in notes)]
