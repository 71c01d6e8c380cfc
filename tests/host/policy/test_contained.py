"""The fence around a policy: what is wrong is said in one line, and the last decision stands."""

import json
from typing import Any

import pytest

from host.policy.contained import ContainedPolicy, DecisionRecord, Limits
from host.policy.observation import Observation
from host.policy.policy import Decision, Reclaim, SetBalloon
from protocol.units import GIB, MIB
from tests.host.policy.observations import machine, seen


class Scripted:
    """A policy that answers, or raises, what it is given; the last one for ever."""

    name = "scripted"
    interval = 1.0

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def decide(self, seen: Observation) -> Decision:
        answer: Any = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        decision: Decision = answer
        return decision


def decide(*answers: Any, observed: Observation | None = None, limits: Limits | None = None) -> Any:
    """Return the records of as many decisions as there are answers, and the lines of the log."""
    lines: list[str] = []
    fence = ContainedPolicy(Scripted(*answers), lines.append, limits or Limits())
    view = seen(machine("a"), machine("b")) if observed is None else observed
    return [fence.decide(view) for _ in answers], lines


GOOD = Decision((SetBalloon("a", GIB), Reclaim("b")), "a good\n reason")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (ValueError("two\nlines"), "ValueError: two lines"),
        (Unprintable(), "Unprintable: an error that has no text"),
        (SystemExit(3), "SystemExit: 3"),
        (BaseException("bare"), "BaseException: bare"),
        (GeneratorExit(), "GeneratorExit: "),
        (None, "decide() returned None, not a Decision"),
        ("x" * 500, f"decide() returned '{'x' * 59}..., not a Decision"),
        (Decision((SetBalloon("c", 0),), ""), "unknown virtual machine 'c'"),
        (Decision((Reclaim("c"),), ""), "unknown virtual machine 'c'"),
        (Decision((SetBalloon("a", -4096),), ""), "a negative size for a: -4096"),
        (Decision((Reclaim("a", -1),), ""), "a negative size for a: -1"),
        (Decision((SetBalloon("a", 1.5),), ""), "a size of 1.5 for a, not whole bytes"),  # type: ignore[arg-type]
        (Decision((SetBalloon("a", True),), ""), "a size of True for a, not whole bytes"),
        (Decision((SetBalloon("a", 0), SetBalloon("a", 0)), ""), "two balloons for a"),
        (Decision((7,), ""), "7 is not an action"),  # type: ignore[arg-type]
        (Decision((), None), "the reason is None, not a string"),  # type: ignore[arg-type]
        (
            Decision((SetBalloon("a", 4 * GIB - 64 * MIB + 1),), ""),
            f"a balloon of {4 * GIB - 64 * MIB + 1} bytes for a, which may have {4 * GIB - 64 * MIB} at most",
        ),
    ],
)
def test_nonsense_costs_one_line_and_the_last_decision_stands(answer: Any, problem: str) -> None:
    records, lines = decide(GOOD, answer, answer, GOOD)
    assert [record.problem for record in records] == [None, problem, problem, None]
    assert [record.actions for record in records[:2]] == [GOOD.actions, (SetBalloon("a", GIB),)]
    assert records[3].reason == "a good reason"
    assert lines == [f"policy scripted: {problem}; the last decision stands"]


def test_fault_that_comes_back_is_said_again() -> None:
    assert len(decide(ValueError("x"), GOOD, ValueError("x"))[1]) == 2


def test_name_is_that_of_the_beginning() -> None:
    policy = Scripted(GOOD)
    fence = ContainedPolicy(policy, print)
    policy.name = "another"
    assert fence.decide(seen(machine("a"), machine("b"))).policy == "scripted"


def test_first_decision_that_is_missing_does_nothing() -> None:
    assert decide(ValueError("x"))[0][0].actions == ()


def test_last_decision_stands_as_far_as_it_is_still_possible() -> None:
    fence = ContainedPolicy(Scripted(Decision((SetBalloon("a", GIB), SetBalloon("b", GIB)), "x"), ValueError()), print)
    fence.decide(seen(machine("a"), machine("b")))
    record = fence.decide(seen(machine("a", 512 * MIB, balloon_bytes=448 * MIB), machine("c")))
    assert record.actions == (SetBalloon("a", 448 * MIB),)


def test_balloon_grows_by_a_step_at_most_and_shrinks_at_once() -> None:
    full, empty = machine("a", balloon_bytes=GIB), machine("c", free_bytes=2 * GIB)
    view = seen(full, machine("b", balloon_bytes=3 * GIB), empty)
    answer = Decision((SetBalloon("a", 3 * GIB), SetBalloon("b", 0), SetBalloon("c", 3 * GIB)), "x")
    [record], _ = decide(answer, observed=view)
    assert record.actions == (SetBalloon("a", 2 * GIB), SetBalloon("b", 0), SetBalloon("c", 3 * GIB))
    assert record.limited == ("a",)


def test_reserve_may_be_another_one() -> None:
    answer = Decision((SetBalloon("a", 4 * GIB),), "x")
    assert decide(answer, limits=Limits(reserve=0, step=1))[0][0].actions == answer.actions


def test_record_holds_all_inputs() -> None:
    view = seen(machine("a", free_bytes=5), used=7, now=3.0, pressure=2.5)
    fence = ContainedPolicy(Scripted(Decision((SetBalloon("a", 4096), Reclaim("a")), "why")), print)
    record = fence.decide(view)
    assert isinstance(record, DecisionRecord)
    line = json.loads(json.dumps(record.as_dict()))
    assert (line["t"], line["policy"], line["reason"]) == (3.0, "scripted", "why")
    assert line["inputs"]["host"] == {
        "budget_bytes": 16 * GIB,
        "used_bytes": 7,
        "pressure": 2.5,
        "free_bytes": 16 * GIB - 7,
    }
    assert line["inputs"]["vms"]["a"]["free_bytes"] == 5
    assert line["inputs"]["vms"]["a"]["cache_bytes"] is None
    assert line["actions"] == [
        {"action": "balloon", "vm": "a", "size": 4096},
        {"action": "reclaim", "vm": "a", "size": None},
    ]
    assert "problem" not in line
