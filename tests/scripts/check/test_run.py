"""A run of cases: verdicts, targets that refuse, and targets that are gone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from protocol.errors import VhostUserError
from scripts.check.run import run_cases
from scripts.check.suite import Suite
from scripts.check.verdict import Failed, Found, Result, TargetError, Verdict, skip

Act = Callable[[str], None]


def run(acts: dict[str, Act], *, lives: int = 1000) -> list[Result]:
    """Run a suite with a case for each act against a target that can be reached ``lives`` times."""
    suite = Suite[str]("trial")
    for name, act in acts.items():
        act.__doc__ = "It is right."
        suite.case(name, clauses=("S-1", "S-2"))(act)
    left = iter(range(lives))

    @contextmanager
    def fresh() -> Iterator[str]:
        if next(left, None) is None:
            raise TargetError("nothing listens")
        yield "target"

    return list(run_cases(list(suite), fresh))


def passes(target: str) -> None:
    assert target == "target"


def fails(target: str) -> None:
    raise Failed("it is wrong", "S-2")


def finds(target: str) -> None:
    raise Found("it is odd")


def skips(target: str) -> None:
    skip("it cannot be tried")


def is_refused(target: str) -> None:
    raise VhostUserError("the back-end refused SET_OWNER")


def ends_target(target: str) -> None:
    raise TargetError("QEMU ended")


@pytest.mark.parametrize(
    ("act", "verdict", "broken", "reason"),
    [
        (passes, Verdict.PASS, (), ""),
        (fails, Verdict.FAIL, ("S-2",), "it is wrong"),
        (finds, Verdict.FINDING, ("S-1", "S-2"), "it is odd"),
        (skips, Verdict.NOT_EXERCISED, ("S-1", "S-2"), "it cannot be tried"),
        (is_refused, Verdict.FAIL, ("S-1", "S-2"), "the back-end refused SET_OWNER"),
        (ends_target, Verdict.FAIL, ("M-alive",), "QEMU ended"),
    ],
)
def test_outcome_is_a_verdict(act: Act, verdict: Verdict, broken: tuple[str, ...], reason: str) -> None:
    (result,) = run({"one": act})
    assert (result.verdict, result.broken, result.reason) == (verdict, broken, reason)
    assert result.clauses == ("S-1", "S-2")


def test_target_that_was_never_there_is_an_error() -> None:
    with pytest.raises(TargetError, match="nothing listens"):
        run({"one": passes}, lives=0)


def test_case_after_which_the_target_is_gone_fails() -> None:
    results = run({"one": passes, "two": passes, "three": passes, "four": passes}, lives=2)
    assert [one.verdict for one in results] == [Verdict.PASS, Verdict.FAIL, *[Verdict.NOT_EXERCISED] * 2]
    assert results[1].broken == ("M-alive",)
    assert "nothing listens" in results[1].reason
    assert [one.case for one in results] == ["one", "two", "three", "four"]


def test_last_case_has_to_leave_the_target_alive() -> None:
    results = run({"one": passes, "two": finds}, lives=2)
    assert [one.verdict for one in results] == [Verdict.PASS, Verdict.FAIL]
    assert results[1].reason == "it is odd; afterwards: nothing listens"
