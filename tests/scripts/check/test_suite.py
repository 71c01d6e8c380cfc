"""Cases by name and by clause."""

import pytest

from protocol.errors import UsageError
from scripts.check.suite import Suite


def suite_of_three() -> Suite[None]:
    """Return a suite with a quick case, a slow one, and one for a packed ring."""
    suite = Suite[None]("trial")

    @suite.case("first-thing", clauses=("S-1", "G-2"), edges=(7,))
    def first(target: None) -> None:
        """The first thing is right.

        And more about it.
        """

    @suite.case("second-thing", clauses=("S-17",), quick=False)
    def second(target: None) -> None:
        """The second thing is right."""

    @suite.case("third-thing/packed", clauses=("P-1",))
    def third(target: None) -> None:
        """The third thing is right."""

    return suite


def names(suite: Suite[None], *patterns: str, quick: bool = False) -> list[str]:
    """Return the names of the chosen cases."""
    return [case.name for case in suite.chosen(patterns, quick=quick)]


def test_case_says_what_is_right_in_one_line() -> None:
    assert suite_of_three()["first-thing"].says == "The first thing is right."


def test_all_cases_are_chosen_without_a_pattern() -> None:
    assert names(suite_of_three()) == ["first-thing", "second-thing", "third-thing/packed"]


def test_quick_cases_are_chosen() -> None:
    assert names(suite_of_three(), quick=True) == ["first-thing", "third-thing/packed"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("second-thing", ["second-thing"]),
        ("*thing*", ["first-thing", "second-thing", "third-thing/packed"]),
        ("third-thing", ["third-thing/packed"]),
        ("S-1", ["first-thing"]),
        ("s-1*", ["first-thing", "second-thing"]),
        ("g-2", ["first-thing"]),
    ],
)
def test_pattern_means_a_case_or_a_clause(pattern: str, found: list[str]) -> None:
    assert names(suite_of_three(), pattern) == found


def test_pattern_that_means_nothing_is_named() -> None:
    with pytest.raises(UsageError, match="'S-99'"):
        suite_of_three().chosen(["S-1", "S-99"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("G-14", "no case exercises G-14: RING_RESET needs a register"),
        ("g-14", "no case exercises G-14: RING_RESET needs a register"),
        ("V-13", "no case here exercises V-13, which binds the back-end"),
    ],
)
def test_clause_without_a_case_is_answered_with_its_reason(pattern: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        suite_of_three().chosen([pattern])
