"""The words of one line of a fault script, taken one after another, and the mistakes that can be made with them."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, NoReturn

from protocol.errors import UsageError
from scripts.check.names import nearest

_WORD: Final = re.compile(r"[,;:]|[^\s,;:#]+")
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+", re.ASCII)
_TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s)", re.ASCII)
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

LONGEST: Final = 3600.0
"""Most seconds of a delay."""


class Word(NamedTuple):
    """A word and the column where it begins, counted from 1."""

    text: str
    column: int


class Words:
    """The words of line ``number`` of the script called ``name``."""

    def __init__(self, name: str, number: int, line: str) -> None:
        self._name = name
        self._number = number
        line = line.partition("#")[0]
        self._words = [Word(found[0], found.start() + 1) for found in _WORD.finditer(line)]
        self._end = len(line.rstrip()) + 1
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all words were taken."""
        return self._at >= len(self._words)

    def peek(self) -> str:
        """Return the next word, "" at the end of the line."""
        return "" if self.is_empty else self._words[self._at].text

    def take(self) -> Word:
        """Take the next word, an empty one at the end of the line."""
        if self.is_empty:
            return Word("", self._end)
        self._at += 1
        return self._words[self._at - 1]

    def accept(self, *words: str) -> bool:
        """Take ``words`` if they come next; return whether they did."""
        following = [word.text for word in self._words[self._at : self._at + len(words)]]
        if following != list(words):
            return False
        self._at += len(words)
        return True

    def expect(self, *words: str) -> None:
        """Take ``words``. Raises :class:`UsageError` if others come."""
        for text in words:
            word = self.take()
            if word.text != text:
                self.refuse(word, f"`{text}`", [text])

    def name(self, what: str, names: Iterable[str]) -> str:
        """Take one of ``names``, of which ``what`` is the kind. Raises :class:`UsageError` for another word."""
        known = list(names)
        word = self.take()
        if word.text not in known:
            self.refuse(word, what, known)
        return word.text

    def number(self, what: str, least: int = 0, most: int = 0xFFFF_FFFF) -> int:
        """Take a number, decimal or hexadecimal. Raises :class:`UsageError` for another word, or one out of range."""
        word = self.take()
        if not _NUMBER.fullmatch(word.text) or len(word.text) > 20 or not least <= int(word.text, _base(word)) <= most:
            self.refuse(word, f"{what}, a number from {least} to {most}")
        return int(word.text, _base(word))

    def probability(self) -> float:
        """Take a number from 0 to 1. Raises :class:`UsageError` for another word."""
        word = self.take()
        if not re.fullmatch(r"[01]|0?\.[0-9]{1,15}", word.text, re.ASCII):
            self.refuse(word, "a probability from 0 to 1, such as 0.1")
        return float(word.text)

    def seconds(self) -> float:
        """Take a time with its unit. Raises :class:`UsageError` for another word."""
        word = self.take()
        found = _TIME.fullmatch(word.text)
        if found is None or not float(found[1]) * _UNITS[found[2]] <= LONGEST:
            self.refuse(word, f"a time up to {LONGEST:g}s, such as 50ms")
        return float(found[1]) * _UNITS[found[2]]

    def end(self) -> None:
        """Raise :class:`UsageError` if a word is left."""
        if not self.is_empty:
            self.refuse(self.take(), "the end of the line")

    def refuse(self, word: Word, expected: str, names: Iterable[str] = ()) -> NoReturn:
        """Raise :class:`UsageError`: ``word`` is not what was expected."""
        found = repr(word.text) if word.text else "the end of the line"
        meant = nearest([word.text], names) if word.text else ""
        raise UsageError(f"{self._name}:{self._number}:{word.column}: expected {expected}{meant}, found {found}")


def _base(word: Word) -> int:
    return 16 if word.text[:2] in ("0x", "0X") else 10
