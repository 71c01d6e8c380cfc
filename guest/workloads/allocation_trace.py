"""The trace format: allocations written down, to be replayed. Text, one event a line::

    balloon-trace 1
    # seconds  event
    0.0        phase churn
    0.0        alloc 1 0
    0.0        alloc 2 9 unmovable
    0.25       free 1

The first line names format and version. Blank lines and lines that begin with ``#`` are ignored. Every other line
begins with the seconds since the start, which never go back; events of the same time happen at once. Then one of

``alloc NUMBER ORDER [MIGRATETYPE]``
    take ``1 << ORDER`` pages; NUMBER names the block from here on and may be used again when it was freed. MIGRATETYPE
    is ``movable`` (default), ``unmovable`` or ``reclaimable``.
``free NUMBER``
    give that block back.
``phase NAME``
    a new phase begins; NAME is the rest of the line.

Blocks that are not freed stay allocated at the end."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from guest.mm.pageblock import MAX_ORDER, MigrateType
from protocol.errors import UsageError

HEADER: Final = "balloon-trace 1"

LINE_MAX: Final = 4096
"""Most characters of a line; a longer one is refused, so a reader need not read further."""

MIGRATETYPES: Final = {
    "movable": MigrateType.MOVABLE,
    "unmovable": MigrateType.UNMOVABLE,
    "reclaimable": MigrateType.RECLAIMABLE,
}

_WORD: Final = re.compile(r"\S+")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", re.IGNORECASE)


class TraceError(UsageError):
    """An invalid line of a trace; the message begins with ``FILE:LINE:COLUMN``, both counted from 1."""

    def __init__(self, name: str, line: int, column: int, what: str) -> None:
        super().__init__(f"{name}:{line}:{column}: {what}")
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Alloc:
    """Take a block and call it ``number``."""

    time: float
    number: int
    order: int
    migratetype: MigrateType


@dataclass(frozen=True, slots=True)
class Free:
    """Give the block ``number`` back."""

    time: float
    number: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A new phase begins."""

    time: float
    name: str


TraceEvent = Alloc | Free | Phase


class TraceWriter:
    """Writes the allocations, frees and phases of a machine as a trace; see :class:`guest.machine.Recorder`.

    ``write`` takes text, ``clock`` returns seconds since the start. Times are written so that reading gives back the
    very same number.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        write(f"{HEADER}\n")

    def allocated(self, number: int, order: int, migratetype: MigrateType) -> None:
        """A block was allocated and will be called ``number``."""
        of_type = "" if migratetype is MigrateType.MOVABLE else f" {migratetype.name.lower()}"
        self._write(f"{self._clock()!r} alloc {number} {order}{of_type}\n")

    def freed(self, number: int) -> None:
        """The block ``number`` is about to be freed."""
        self._write(f"{self._clock()!r} free {number}\n")

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._write(f"{self._clock()!r} phase {name}\n")


def parse_trace(lines: Iterable[str], name: str) -> tuple[TraceEvent, ...]:
    """Return the events of a trace. ``name`` is what the file is called in errors.

    Raises:
        TraceError: the first line that is not as described above, or contradicts one before it.
    """
    return tuple(_Parser(name).parse(lines))


class _Parser:
    # The state from line to line: which blocks are allocated, and where the clock stands.

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = 0
        self._time = 0.0
        self._allocated: set[int] = set()
        self._events: dict[str, Callable[[list[re.Match[str]], str], TraceEvent]] = {
            "alloc": self._alloc,
            "free": self._free,
            "phase": self._phase,
        }

    def parse(self, lines: Iterable[str]) -> Iterable[TraceEvent]:
        self._line = 0
        for self._line, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if len(text) > LINE_MAX:
                raise self._error(LINE_MAX, f"the line is longer than {LINE_MAX} characters")
            if self._line == 1:
                if text.split() != HEADER.split():
                    raise self._error(0, f"not a trace: the first line has to be {HEADER!r}")
            elif (words := list(_WORD.finditer(text))) and not words[0][0].startswith("#"):
                yield self._event(words, text)
        if not self._line:
            self._line = 1
            raise self._error(0, "the file is empty")

    def _event(self, words: list[re.Match[str]], text: str) -> TraceEvent:
        self._read_time(words[0])
        if len(words) < 2:
            raise self._error(len(text), f"an event is missing, one of {', '.join(self._events)}")
        event = self._events.get(words[1][0])
        if event is None:
            raise self._error(
                words[1].start(), f"unknown event {_shown(words[1][0])}, known are {', '.join(self._events)}"
            )
        return event(words, text)

    def _read_time(self, word: re.Match[str]) -> None:
        if _SECONDS.fullmatch(word[0]) is None or (time := float(word[0])) == float("inf"):
            raise self._error(word.start(), f"{_shown(word[0])} is not a number of seconds")
        if time < self._time:
            raise self._error(word.start(), f"{word[0]} s is before the {self._time!r} s of an earlier line")
        self._time = time

    def _alloc(self, words: list[re.Match[str]], text: str) -> Alloc:
        self._check_count(words, 4, 5, "alloc NUMBER ORDER [MIGRATETYPE]", text)
        number = self._number(words[2])
        order = self._number(words[3])
        migratetype = MigrateType.MOVABLE
        if number in self._allocated:
            raise self._error(words[2].start(), f"block {number} is allocated already")
        if order > MAX_ORDER:
            raise self._error(words[3].start(), f"order {order} is not from 0 to {MAX_ORDER}")
        if len(words) > 4:
            if words[4][0] not in MIGRATETYPES:
                known = ", ".join(MIGRATETYPES)
                raise self._error(words[4].start(), f"unknown migratetype {_shown(words[4][0])}, known are {known}")
            migratetype = MIGRATETYPES[words[4][0]]
        self._allocated.add(number)
        return Alloc(self._time, number, order, migratetype)

    def _free(self, words: list[re.Match[str]], text: str) -> Free:
        self._check_count(words, 3, 3, "free NUMBER", text)
        number = self._number(words[2])
        if number not in self._allocated:
            raise self._error(words[2].start(), f"block {number} is not allocated")
        self._allocated.remove(number)
        return Free(self._time, number)

    def _phase(self, words: list[re.Match[str]], text: str) -> Phase:
        self._check_count(words, 3, len(words), "phase NAME", text)
        return Phase(self._time, text[words[2].start() :].rstrip())

    def _check_count(self, words: list[re.Match[str]], least: int, most: int, form: str, text: str) -> None:
        if len(words) < least:
            raise self._error(len(text), f"the line ends too early, it has to be: SECONDS {form}")
        if len(words) > most:
            raise self._error(words[most].start(), f"{_shown(words[most][0])} is too much, the line is: SECONDS {form}")

    def _number(self, word: re.Match[str]) -> int:
        if _NUMBER.fullmatch(word[0]) is None:
            raise self._error(word.start(), f"{_shown(word[0])} is not a whole number of at most 18 digits")
        return int(word[0])

    def _error(self, column: int, what: str) -> TraceError:
        return TraceError(self._name, self._line, column + 1, what)


def _shown(word: str) -> str:
    # A word of a file that may be anything, for a message of one line.
    return repr(word if len(word) <= 40 else word[:40] + "...")
