"""The rules of a page: complete, without a contradiction, and each with its source."""

import re

import pytest

from scripts.check.clauses.table import CLAUSES
from scripts.check.ownership.page_state import (
    DOUBLE_REPORT,
    MOVES,
    RACES,
    STALE_FLAG,
    WITH_TELLING,
    WITHOUT_TELLING,
    PageEvent,
    PageState,
)

S, E = PageState, PageEvent


def test_nothing_is_both_allowed_and_a_race() -> None:
    assert MOVES.keys() & RACES.keys() == set()
    assert MOVES.keys() & (WITH_TELLING.keys() | WITHOUT_TELLING.keys()) == set()
    assert WITH_TELLING.keys() & WITHOUT_TELLING.keys() == set()


def test_what_depends_on_must_tell_host_is_a_race_without() -> None:
    assert WITH_TELLING.keys() | WITHOUT_TELLING.keys() <= RACES.keys()


def test_every_source_is_a_clause_or_a_function_of_linux() -> None:
    tables = (MOVES, WITH_TELLING, WITHOUT_TELLING, RACES)
    sources = {rule.source for table in tables for rule in table.values()} | {DOUBLE_REPORT.source, STALE_FLAG.source}
    function = re.compile(r"[a-z_/]+\.c: [a-z_]+")
    assert [source for source in sources if source not in CLAUSES and not function.fullmatch(source)] == []


def test_every_state_is_reached_from_a_free_page() -> None:
    reached = {S.FREE}
    for _ in S:
        reached |= {move.to for (state, _), move in MOVES.items() if state in reached}
    assert reached == set(S)


@pytest.mark.parametrize("event", [E.TOUCH, E.ALLOCATE, E.DISCARD])
def test_use_and_discard_have_a_verdict_in_every_state(event: PageEvent) -> None:
    known = MOVES.keys() | RACES.keys()
    assert [state for state in S if (state, event) not in known] == []


@pytest.mark.parametrize("state", S)
def test_only_one_side_may_change_a_page(state: PageState) -> None:
    """Where the guest may touch the device may not discard, and the other way round."""
    assert not ((state, E.TOUCH) in MOVES and ((state, E.DISCARD) in MOVES or (state, E.DISCARD) in WITH_TELLING))


@pytest.mark.parametrize("member", [*S, *E])
def test_states_and_events_have_words(member: PageState | PageEvent) -> None:
    assert member.words
