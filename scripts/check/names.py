"""Names that were meant."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(typed: Sequence[str], names: Iterable[str]) -> str:
    """Return ``, such as NAME`` for the name that is most like what was typed, "" if none is."""
    known = list(names)
    for word in typed:
        for close in difflib.get_close_matches(word, known, 1):
            return f", such as {close}"
    return ""
