"""A run as a list of steps: the text in which it is saved, and what is wrong with a text.

::

    # a comment
    world ring split reporter boundary must-tell-host off deflate-on-oom off
    fault acknowledged-first
    reporter         begin       3072+1024
    reporter         report      3072+1024
    device-reporting take
    expect late-discard BR-3

The line ``world`` comes first, ``fault`` and ``expect`` are optional; a step is an actor, its action, and ranges of
pages: first page frame and number of pages, ``none`` in the place of the first for an allocation that has failed, and
for a number of pages alone.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from protocol.errors import UsageError
from scripts.check.names import nearest
from scripts.check.ownership.pages import NOWHERE, Pages
from scripts.check.ownership.world.actor import Step
from scripts.check.ownership.world.guest_side import TOTAL_PAGES
from scripts.check.ownership.world.world_options import CHOICES, WorldOptions, word_of

STEPS_MAX: Final = 100_000
"""Most steps of a script."""

_WORD: Final = re.compile(r"\S+")
_RANGE: Final = re.compile(r"(none|[0-9]{1,9})\+([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A run. ``fault`` is what was wrong with its world, ``expect`` the race and the source of its violation."""

    options: WorldOptions
    steps: tuple[Step, ...]
    fault: str | None = None
    expect: tuple[str, str] | None = None

    def __str__(self) -> str:
        lines = [str(self.options)]
        if self.fault is not None:
            lines.append(f"fault {self.fault}")
        lines += map(str, self.steps)
        if self.expect is not None:
            lines.append(f"expect {self.expect[0]} {self.expect[1]}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a script may name: actors with their actions, and faults."""

    actions: dict[str, frozenset[str]]
    faults: Collection[str]


class _Line:
    # The words of one line, taken one after another.

    def __init__(self, name: str, number: int, line: str) -> None:
        self._place = f"{name}:{number}"
        text = line.partition("#")[0].rstrip()
        self._words = [(found[0], found.start() + 1) for found in _WORD.finditer(text)]
        self._end = len(text) + 1

    @property
    def rest(self) -> int:
        return len(self._words)

    def peek(self) -> str:
        return self._words[0][0] if self._words else ""

    def take(self, what: str, known: Collection[str] | None = None) -> str:
        text, column = self._words.pop(0) if self._words else ("", self._end)
        if not text or (known is not None and text not in known):
            self.refuse(what, text, column, known or ())
        return text

    def take_rest(self, what: str) -> str:
        words = [self.take(what)]
        while self._words:
            words.append(self._words.pop(0)[0])
        return " ".join(words)

    def take_pages(self) -> Pages:
        column = self._words[0][1] if self._words else self._end
        text = self.take("a range of pages, such as 512+4")
        found = _RANGE.fullmatch(text)
        if found is None or (int(found[2]) == 0 and found[1] != "none"):
            self.refuse("a range of pages, such as 512+4", text, column)
        first = NOWHERE if found[1] == "none" else int(found[1])
        if max(first, 0) + int(found[2]) > TOTAL_PAGES:
            self.refuse(f"pages below {TOTAL_PAGES}", text, column)
        return Pages(first, int(found[2]))

    def end(self) -> None:
        if self._words:
            text, column = self._words[0]
            self.refuse("the end of the line", text, column)

    def refuse(self, expected: str, found: str, column: int, known: Collection[str] = ()) -> NoReturn:
        meant = nearest([found], known) if found else ""
        raise UsageError(
            f"{self._place}:{column}: expected {expected}{meant}, found {found!r}"
            if found
            else f"{self._place}:{column}: expected {expected}, found the end of the line"
        )


def parse_script(text: str, name: str, vocabulary: Vocabulary) -> Script:
    """Return the script whose text is ``text``. ``name`` is the file's, for messages.

    Raises:
        UsageError: the text has a mistake: its file, line and column, and what was expected there.
    """
    options: WorldOptions | None = None
    fault: str | None = None
    expect: tuple[str, str] | None = None
    steps = list[Step]()
    for number, line in enumerate(text.split("\n"), 1):
        words = _Line(name, number, line)
        if not words.rest:
            continue
        if options is None:
            options = _parse_world(words)
        elif words.peek() == "fault" and fault is None and not steps:
            words.take("`fault`")
            fault = words.take("the name of a fault", vocabulary.faults)
            words.end()
        elif words.peek() == "expect" and expect is None:
            words.take("`expect`")
            expect = words.take("the name of a race"), words.take_rest("a clause")
        elif expect is not None:
            words.take("nothing after `expect`", ())
        else:
            steps.append(_parse_step(words, vocabulary.actions))
            if len(steps) > STEPS_MAX:
                raise UsageError(f"{name}:{number}:1: more than {STEPS_MAX} steps")
    if options is None:
        raise UsageError(f"{name}:1:1: expected `world`, found the end of the file")
    return Script(options=options, steps=tuple(steps), fault=fault, expect=expect)


def _parse_world(words: _Line) -> WorldOptions:
    words.take("`world`", ("world",))
    chosen = dict[str, str]()
    by_word = {word_of(field): field for field in CHOICES}
    while words.rest:
        left = [word for word, field in by_word.items() if field not in chosen]
        field = by_word[words.take(f"one of {_listed(left)}" if left else "the end of the line", left)]
        chosen[field] = words.take(f"one of {_listed(CHOICES[field])}", CHOICES[field])
    return WorldOptions(**chosen)


def _parse_step(words: _Line, actions: dict[str, frozenset[str]]) -> Step:
    actor = words.take(f"an actor ({_listed(sorted(actions))})", actions)
    action = words.take(f"what {actor} does ({_listed(sorted(actions[actor]))})", actions[actor])
    pages = list[Pages]()
    while words.rest:
        pages.append(words.take_pages())
    return Step(actor, action, tuple(pages))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
