"""The ledger of all pages of a guest: it is told what happens to them and says what must not have happened.

It knows no allocator and no device. ``page_state`` has the rules.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocol.errors import BalloonError
from scripts.check.clauses.table import CLAUSES
from scripts.check.ownership.page_state import (
    DOUBLE_REPORT,
    MOVES,
    OUT_OF_ORDER,
    RACES,
    STALE_FLAG,
    WITH_TELLING,
    WITHOUT_TELLING,
    PageEvent,
    PageState,
    Race,
)
from scripts.check.ownership.pages import Pages

_LOANS: Final = {PageEvent.REPORT: "BR-3", PageEvent.INFLATE: "BI-13", PageEvent.HINT: "BH-15"}
"""The rule that a discard breaks after the end of each kind of loan."""

_RUN: Final = re.compile(rb"(.)\1*", re.DOTALL)
_STATE_BYTES: Final = tuple(bytes([state]) for state in PageState)


class Happening(NamedTuple):
    """One entry of the ledger's history."""

    event: PageEvent
    pages: Pages


class Violation(BalloonError):
    """A race. ``pages`` are those in one state among the ones that ``event`` is about; ``source`` is the clause or the
    function of Linux that has the rule; ``history`` is what happened to the first of them before, the oldest first.
    ``why`` is added to the sentence that these make up, ``text`` stands in its place."""

    def __init__(
        self,
        race: Race,
        event: PageEvent,
        pages: Pages,
        state: PageState,
        history: tuple[PageEvent, ...],
        why: str = "",
        text: str | None = None,
    ) -> None:
        self.race = race.name
        self.source = race.source
        self.event = event
        self.pages = pages
        self.state = state
        self.history = history
        if text is None:
            where, is_are = (f"page {pages.first}", "is") if pages.length == 1 else (f"pages {pages}", "are")
            text = f"{event.words} {where}, which {is_are} {state.words}{why}"
        super().__init__(f"{race.name}: {text} ({self.rule})")

    @property
    def rule(self) -> str:
        """What is broken, in words."""
        clause = CLAUSES.get(self.source)
        if clause is None:
            return f"as in Linux {self.source}"
        return f"{clause.id}, {clause.level.value}: {clause.statement[:-1]}"


class PageOwners:
    """The state of each of ``pages`` pages, all free at first. ``must_tell_host`` says what was negotiated."""

    def __init__(self, pages: int, *, must_tell_host: bool) -> None:
        self._states = bytearray(pages)
        self._reported = bytearray(pages)
        allowed = {**MOVES, **(WITH_TELLING if must_tell_host else WITHOUT_TELLING)}
        self._moves = [[allowed.get((state, event)) for event in PageEvent] for state in PageState]
        self._watches = True
        self.history: list[Happening] = []
        """Everything that happened, the oldest first."""
        self.rounds_over: set[int] = set()
        """The rounds of hints after which DONE was shown."""

    def state(self, pfn: int) -> PageState:
        """Return the state of one page."""
        return PageState(self._states[pfn])

    def count(self, state: PageState) -> int:
        """Return how many pages are in this state."""
        return self._states.count(state)

    def close(self) -> None:
        """Note nothing any more: what happens from now on is the end of the world."""
        self._watches = False

    # --- Events ---

    def note(self, event: PageEvent, *ranges: Pages) -> None:
        """Note that ``event`` has happened to the pages of ``ranges``.

        Raises:
            Violation: it must not, in the state that the pages are in. Those before them are noted.
        """
        for pages in ranges if self._watches else ():
            for part, state in self._parts(pages):
                move = self._moves[state][event]
                if move is None:
                    raise self._violation(event, part, PageState(state))
                self._enter(event, part, move.to)
            self.history.append(Happening(event, pages))

    def isolate(self, pages: Pages, *, flagged: bool) -> None:
        """Note that the driver takes a block off the free lists; ``flagged`` says that it is marked as reported.

        Raises:
            Violation: it must not.
        """
        if flagged:
            state = self.state(pages.first)
            history = self._history_of(pages.first)
            raise Violation(DOUBLE_REPORT, PageEvent.ISOLATE, pages, state, history, " and marked as reported")
        self.note(PageEvent.ISOLATE, pages)

    def done(self, command_id: int) -> None:
        """Note that the device has shown DONE after round ``command_id``: it is over for every page in it."""
        self.rounds_over.add(command_id)
        self._note_all(PageEvent.DONE)

    def reset(self) -> None:
        """Note that the device is reset: it has given up every page."""
        self._note_all(PageEvent.RESET)

    def check_flags(self, blocks: Iterable[Pages]) -> None:
        """Compare with the free ``blocks`` that the guest has marked as reported.

        Raises:
            Violation: one has a page that was not reported, or was used since.
        """
        for pages in blocks:
            if self._reported.count(1, pages.first, pages.end) != pages.length:
                pfn = self._reported.index(0, pages.first, pages.end)
                history = self._history_of(pfn)
                why = f", and page {pfn} was not reported, or was used since"
                raise Violation(STALE_FLAG, PageEvent.MARK, pages, self.state(pfn), history, why)

    def _note_all(self, event: PageEvent) -> None:
        # Note an event for every page in a state that it changes.
        for part, state in list(self._parts(Pages(0, len(self._states)))):
            move = self._moves[state][event]
            if move is not None:
                self._enter(event, part, move.to)
                self.history.append(Happening(event, part))

    def _enter(self, event: PageEvent, pages: Pages, state: PageState) -> None:
        first, length = pages
        if event is PageEvent.ALLOCATE or event is PageEvent.ISOLATE:
            self._reported[first : first + length] = bytes(length)
        elif state is PageState.ACKNOWLEDGED:
            self._reported[first : first + length] = b"\1" * length
        self._states[first : first + length] = _STATE_BYTES[state] * length

    def _parts(self, pages: Pages) -> Iterable[tuple[Pages, int]]:
        # The runs of pages that are in one state, with that state.
        first, length = pages
        states = self._states
        assert 0 <= first < first + length <= len(states), pages
        if states.count(states[first], first, first + length) == length:
            return ((pages, states[first]),)
        runs = _RUN.finditer(states, first, first + length)
        return [(Pages(run.start(), len(run[0])), run[0][0]) for run in runs]

    # --- What went wrong ---

    def _violation(self, event: PageEvent, pages: Pages, state: PageState) -> Violation:
        race = RACES.get((state, event), Race(OUT_OF_ORDER, "M-safe"))
        history = self._history_of(pages.first)
        if event is PageEvent.ACKNOWLEDGE and _is_after_reset(history):
            race = Race("acknowledgement-after-reset", "G-11")
        if event is PageEvent.DISCARD and state not in (PageState.BALLOONED, PageState.DEFLATING, PageState.HINT_OVER):
            race = _of_last_loan(race, history)
        return Violation(race, event, pages, state, history)

    def _history_of(self, pfn: int) -> tuple[PageEvent, ...]:
        return tuple(event for event, pages in self.history if pages.first <= pfn < pages.end)


def _is_after_reset(history: tuple[PageEvent, ...]) -> bool:
    # Whether the last loan of the page, if there was one, was ended by a reset.
    return next((event for event in reversed(history) if event in (*_LOANS, PageEvent.RESET)), None) is PageEvent.RESET


def _of_last_loan(race: Race, history: tuple[PageEvent, ...]) -> Race:
    # A discard of a page that is not the device's: which rule it breaks follows from how the device had it last.
    loan = next((event for event in reversed(history) if event in _LOANS), None)
    if loan is None:
        return Race("discard-not-given" if race.name != "discard-in-use" else race.name, race.source)
    return Race(race.name, "G-11" if _is_after_reset(history) else _LOANS[loan])
