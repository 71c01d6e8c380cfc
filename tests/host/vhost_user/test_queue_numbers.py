"""Finding out by which dialect a driver numbers its queues, and never taking one queue for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.vhost_user.queue_numbers import CHOICES, QueueNumbers
from protocol.errors import VhostUserError
from protocol.virtio_balloon import BalloonQueue, QueueDialect, queue_numbers

STATS, HINT, REPORTING = 1 << 1, 1 << 3, 1 << 5
ALL = STATS | HINT | REPORTING

features = st.sets(st.sampled_from([STATS, HINT, REPORTING])).map(sum)
dialects = st.sampled_from(QueueDialect)


@st.composite
def negotiations(draw: st.DrawFn) -> tuple[int, int]:
    """What was negotiated, and what had been offered."""
    offered = draw(features)
    return draw(features) & offered, offered


@pytest.mark.parametrize(
    ("dialect", "negotiated", "offered", "reporting"),
    [
        (QueueDialect.NEGOTIATED, REPORTING, ALL, 2),
        (QueueDialect.NEGOTIATED, STATS | REPORTING, ALL, 3),
        (QueueDialect.NEGOTIATED, HINT | REPORTING, ALL, 3),
        (QueueDialect.NEGOTIATED, ALL, ALL, 4),
        (QueueDialect.OFFERED, REPORTING, ALL, 4),
        (QueueDialect.OFFERED, REPORTING, STATS | REPORTING, 3),
        (QueueDialect.OFFERED, REPORTING, REPORTING, 2),
        (QueueDialect.FIXED, REPORTING, REPORTING, 4),
        (QueueDialect.FIXED, ALL, ALL, 4),
    ],
)
def test_number_of_the_reporting_queue(dialect: QueueDialect, negotiated: int, offered: int, reporting: int) -> None:
    numbers = queue_numbers(dialect, negotiated=negotiated, offered=offered)
    assert [index for index, queue in numbers.items() if queue is BalloonQueue.REPORTING] == [reporting]


@given(dialect=dialects, case=negotiations())
def test_queue_that_was_not_negotiated_has_no_number(dialect: QueueDialect, case: tuple[int, int]) -> None:
    negotiated, offered = case
    numbers = queue_numbers(dialect, negotiated=negotiated, offered=offered)
    assert set(numbers.values()) == set(
        queue_numbers(QueueDialect.NEGOTIATED, negotiated=negotiated, offered=offered).values()
    )
    assert list(numbers) == sorted(numbers)


@given(dialect=dialects, case=negotiations(), data=st.data())
def test_drivers_dialect_is_found_with_its_rings_in_any_order(
    dialect: QueueDialect, case: tuple[int, int], data: st.DataObject
) -> None:
    """On the way no ring ever gets another role than the driver means, and at the end each has its own."""
    negotiated, offered = case
    meant = queue_numbers(dialect, negotiated=negotiated, offered=offered)
    numbers = QueueNumbers()
    set_up: set[int] = set()
    for index in data.draw(st.permutations(sorted(meant))):
        set_up.add(index)
        numbers.learn(set_up, set(), negotiated=negotiated, offered=offered)
        for known in set_up:
            try:
                assert numbers.role(known, set_up, negotiated=negotiated, offered=offered) is meant[known]
            except VhostUserError:
                assert set_up != meant.keys()
    assert queue_numbers(numbers.dialect, negotiated=negotiated, offered=offered) == meant


def test_ring_that_may_be_either_queue_waits_for_the_others() -> None:
    numbers = QueueNumbers()
    case = {"negotiated": HINT | REPORTING, "offered": ALL}
    assert not numbers.learn({0, 1, 3}, set(), **case)
    with pytest.raises(VhostUserError, match="queue 3 may be free_page or reporting"):
        numbers.role(3, {0, 1, 3}, **case)
    assert numbers.role(0, {0, 1, 3}, **case) is BalloonQueue.INFLATE
    assert numbers.learn({0, 1, 3, 4}, set(), **case)
    assert numbers.dialect is QueueDialect.OFFERED
    assert numbers.role(3, {0, 1, 3, 4}, **case) is BalloonQueue.FREE_PAGE
    assert numbers.role(4, {0, 1, 3, 4}, **case) is BalloonQueue.REPORTING


def test_rings_that_no_dialect_explains_change_nothing() -> None:
    numbers = QueueNumbers()
    case = {"negotiated": REPORTING, "offered": ALL}
    assert not numbers.learn({0, 1, 2, 3}, set(), **case)
    assert numbers.role(2, {0, 1, 2, 3}, **case) is BalloonQueue.REPORTING
    assert numbers.role(3, {0, 1, 2, 3}, **case) is None
    assert numbers.learn({0, 1, 4}, set(), **case)
    assert not numbers.learn({0, 1, 2, 4}, set(), **case)
    assert numbers.role(4, {0, 1, 2, 4}, **case) is BalloonQueue.REPORTING
    numbers.forget()
    assert numbers.dialect is QueueDialect.NEGOTIATED


@pytest.mark.parametrize("choice", CHOICES)
def test_dialect_that_the_operator_sets_is_not_inferred(choice: str) -> None:
    numbers = QueueNumbers.named(choice)
    learned = numbers.learn({0, 1, 4}, set(), negotiated=REPORTING, offered=REPORTING)
    assert learned == (choice == "auto")
    assert numbers.dialect.value == ("fixed" if choice == "auto" else choice)


def test_running_ring_keeps_its_role() -> None:
    numbers = QueueNumbers()
    case = {"negotiated": HINT | REPORTING, "offered": HINT | REPORTING}
    assert not numbers.learn({0, 1, 2, 3}, set(), **case)
    # The front-end takes ring 2 away and sets up ring 4: queue 3 would be hinting now, but serves reports.
    assert not numbers.learn({0, 1, 3, 4}, {3}, **case)
    assert numbers.dialect.value == "negotiated"
    assert numbers.learn({0, 1, 3, 4}, {0, 1}, **case)
    assert numbers.dialect.value == "fixed"
