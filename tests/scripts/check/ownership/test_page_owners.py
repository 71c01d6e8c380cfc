"""The ledger: the life of a page, the races and how they are told, and a slower ledger that it has to agree with."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.check.ownership.page_owners import PageOwners, Violation
from scripts.check.ownership.page_state import (
    MOVES,
    RACES,
    WITH_TELLING,
    WITHOUT_TELLING,
    PageEvent,
    PageState,
)
from scripts.check.ownership.pages import Pages, neighbours_joined, runs

S, E = PageState, PageEvent
TOTAL = 16
BLOCK = Pages(4, 8)

REPORT = (E.ISOLATE, E.REPORT, E.DISCARD, E.ACKNOWLEDGE, E.FREE)
BALLOON = (E.ISOLATE, E.INFLATE, E.DISCARD, E.ACKNOWLEDGE, E.DEFLATE, E.ACKNOWLEDGE, E.FREE)
HINT = (E.ISOLATE, E.HINT, E.DISCARD, E.ACKNOWLEDGE, E.DONE, E.FREE)
USE = (E.ALLOCATE, E.TOUCH, E.FREE)


def ledger(*events: PageEvent, must_tell_host: bool = False) -> PageOwners:
    owners = PageOwners(TOTAL, must_tell_host=must_tell_host)
    for event in events:
        owners.note(event, BLOCK)
    return owners


def violation(owners: PageOwners, event: PageEvent, pages: Pages = BLOCK) -> Violation:
    with pytest.raises(Violation) as caught:
        owners.note(event, pages)
    return caught.value


@pytest.mark.parametrize("loan", [REPORT, BALLOON, HINT])
def test_page_is_lent_and_used_again(loan: tuple[PageEvent, ...]) -> None:
    owners = ledger(*loan, *USE, *loan, *USE)
    assert owners.count(S.FREE) == TOTAL


@pytest.mark.parametrize(
    ("before", "event", "race", "source"),
    [
        (REPORT[:2], E.TOUCH, "touch-before-acknowledgement", "BR-3"),
        (REPORT[:3], E.FREE, "free-before-acknowledgement", "BR-3"),
        (REPORT[:2], E.REPORT, "double-report", "mm/page_reporting.c: page_reporting_cycle"),
        (REPORT[:4], E.DISCARD, "late-discard", "BR-3"),
        (REPORT, E.DISCARD, "late-discard", "BR-3"),
        ((*REPORT, E.ALLOCATE), E.DISCARD, "discard-in-use", "BR-3"),
        ((E.ALLOCATE,), E.DISCARD, "discard-in-use", "M-safe"),
        ((), E.DISCARD, "discard-not-given", "M-safe"),
        ((E.ISOLATE,), E.DISCARD, "discard-not-given", "M-safe"),
        (REPORT[:4], E.ACKNOWLEDGE, "double-acknowledgement", "drivers/virtio/virtio_ring.c: virtqueue_get_buf"),
        (BALLOON[:2], E.TOUCH, "touch-before-acknowledgement", "BI-9"),
        (BALLOON[:2], E.DEFLATE, "deflate-before-acknowledgement", "BI-10"),
        (BALLOON[:4], E.TOUCH, "touch-in-balloon", "BI-6"),
        (BALLOON[:4], E.REPORT, "report-of-ballooned", "BI-6"),
        (BALLOON[:4], E.DISCARD, "late-discard", "BI-13"),
        (BALLOON, E.DISCARD, "late-discard", "BI-13"),
        (HINT[:2], E.TOUCH, "hint-reuse", "BH-9"),
        (HINT[:2], E.FREE, "hint-released-early", "BH-14"),
        (HINT[:5], E.DISCARD, "discard-after-done", "BH-15"),
        (HINT, E.HINT, "hint-after-release", "BH-5"),
        (HINT, E.DISCARD, "late-discard", "BH-15"),
        ((E.ALLOCATE,), E.ISOLATE, "isolate-in-use", "mm/page_alloc.c: __isolate_free_page"),
        ((), E.DEFLATE, "out-of-order", "M-safe"),
    ],
)
def test_race_has_its_name_and_its_rule(
    before: tuple[PageEvent, ...], event: PageEvent, race: str, source: str
) -> None:
    found = violation(ledger(*before), event)
    assert (found.race, found.source, found.event, found.history) == (race, source, event, before)


def test_page_leaves_the_balloon_untold_only_without_must_tell_host() -> None:
    ledger(*BALLOON[:4], E.FREE)
    found = violation(ledger(*BALLOON[:4], must_tell_host=True), E.FREE)
    assert (found.race, found.source) == ("deflate-not-told", "BI-7")
    found = violation(ledger(*BALLOON[:5], must_tell_host=True), E.FREE)
    assert (found.race, found.source) == ("deflate-before-reply", "BI-7")


def test_page_in_the_balloon_may_change_only_with_must_tell_host() -> None:
    owners = ledger(*BALLOON[:4], E.DISCARD, E.DEFLATE, E.DISCARD, must_tell_host=True)
    assert owners.count(S.DEFLATING) == BLOCK.length


def test_reset_ends_every_loan_but_the_balloon() -> None:
    owners = PageOwners(TOTAL, must_tell_host=False)
    for number, events in enumerate([REPORT[:2], REPORT[:4], BALLOON[:2], BALLOON[:4], BALLOON[:5], HINT[:2], USE[:1]]):
        for event in events:
            owners.note(event, Pages(number, 1))
    owners.reset()
    states = [owners.state(pfn) for pfn in range(8)]
    isolated = [S.ISOLATED] * 3
    assert states == [*isolated, S.KEPT, S.KEPT, S.HINT_OVER, S.IN_USE, S.FREE]
    owners.note(E.INFLATE, Pages(3, 1))
    owners.note(E.DEFLATE, Pages(4, 1))


def test_discard_after_a_reset_breaks_the_rule_of_resets() -> None:
    owners = ledger(*REPORT[:2])
    owners.reset()
    owners.note(E.FREE, BLOCK)
    assert violation(owners, E.DISCARD).source == "G-11"
    assert violation(owners, E.ACKNOWLEDGE).race == "acknowledgement-after-reset"


def test_violation_names_the_pages_in_one_state() -> None:
    found = violation(ledger(*REPORT[:2]), E.DISCARD, Pages(4, 12))
    assert found.pages == Pages(12, 4)
    assert str(found) == (
        "discard-not-given: the device discards pages 12+4, which are free (M-safe, MUST: The device changes no byte "
        "of memory that no buffer gave it; a page in use stays)"
    )


def test_done_is_for_the_pages_of_the_round() -> None:
    owners = ledger(*HINT[:2])
    owners.note(E.ALLOCATE, Pages(0, 1))
    owners.done(2)
    assert (owners.count(S.HINT_OVER), owners.count(S.IN_USE), owners.rounds_over) == (BLOCK.length, 1, {2})


def test_marked_block_is_reported_once() -> None:
    owners = ledger(*REPORT)
    owners.check_flags([BLOCK])
    with pytest.raises(Violation, match=r"^double-report: the driver isolates pages 4\+8, .* and marked as reported"):
        owners.isolate(BLOCK, flagged=True)
    owners.isolate(BLOCK, flagged=False)


def test_mark_is_stale_on_a_page_that_was_used() -> None:
    owners = ledger(*REPORT)
    for event in USE:
        owners.note(event, Pages(6, 1))
    with pytest.raises(Violation, match=r"^stale-reported-flag: .* page 6 was not reported, or was used since"):
        owners.check_flags([BLOCK])


def test_closed_ledger_notes_nothing() -> None:
    owners = ledger()
    owners.close()
    owners.note(E.DISCARD, BLOCK)
    assert owners.history == []


PAGES = st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)).map(
    lambda pair: Pages(pair[0], min(pair[1], TOTAL - pair[0]))
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(E), PAGES), max_size=40), st.booleans())
def test_ledger_agrees_with_one_that_goes_page_by_page(events: list[tuple[PageEvent, Pages]], tells: bool) -> None:
    owners = PageOwners(TOTAL, must_tell_host=tells)
    rules = {**MOVES, **(WITH_TELLING if tells else WITHOUT_TELLING)}
    slow = [S.FREE] * TOTAL
    for event, pages in events:
        states = slow[pages.first : pages.end]
        wrong = next((n for n, state in enumerate(states) if (state, event) not in rules), None)
        if wrong is None:
            owners.note(event, pages)
        else:
            found = violation(owners, event, pages)
            assert (found.pages.first, found.state) == (pages.first + wrong, states[wrong])
            assert (states[wrong], event) in RACES or found.race in ("out-of-order", "acknowledgement-after-reset")
            states = states[:wrong]
        for number, state in enumerate(states):
            slow[pages.first + number] = rules[state, event].to
        assert [owners.state(pfn) for pfn in range(TOTAL)] == slow


@settings(max_examples=30)
@given(st.sets(st.integers(0, 50)))
def test_runs_are_the_pages_again(pfns: set[int]) -> None:
    found = runs(pfns)
    assert [pfn for pages in found for pfn in range(pages.first, pages.end)] == sorted(pfns)
    assert all(one.end < other.first for one, other in pairwise(found))


def test_neighbours_are_joined_upward() -> None:
    assert neighbours_joined([Pages(4, 2), Pages(6, 1), Pages(2, 2), Pages(4, 2)]) == (Pages(4, 3), Pages(2, 2))
