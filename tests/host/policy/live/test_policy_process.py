"""A user's policy in a process of its own: what it does to that process costs decisions, and no run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.policy.contained import ContainedPolicy
from host.policy.live import policy_process
from host.policy.live.policy_process import PolicyProcess, policy_for_run
from host.policy.steady import Steady
from protocol.errors import UsageError
from tests.host.policy.observations import machine, seen

pytestmark = pytest.mark.processes

MODULE = """
import os
from host.policy.policy import Decision, SetBalloon

class Mine:
    name, interval = "mine", 5.0

    def __init__(self, how="fine"):
        self.how, self.count = how, 0

    def decide(self, seen):
        self.count += 1
        if self.how == "forks":
            os.fork()
            print("what a policy prints is not the run's")
        if self.count == 2 and self.how == "exits":
            os._exit(7)
        if self.count == 2 and self.how == "closes":
            os.closerange(3, 256)
            while True:
                pass
        if self.count == 2 and self.how == "hangs":
            while True:
                pass
        if self.count == 2 and self.how == "raises":
            raise ArithmeticError("so many machines")
        if self.count == 2 and self.how == "gives":
            return lambda: None
        return Decision((SetBalloon("a", 4096 * self.count),), f"for the {self.count}. time")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_a_user", None)


@pytest.mark.parametrize(
    ("how", "problem", "third"),
    [
        ("exits", "PolicyEndedError: its process ended with status 7", 1),
        ("closes", "PolicyEndedError: its process closed the way to it", 1),
        ("hangs", "PolicyEndedError: no answer within 1 s", 1),
        ("raises", "ArithmeticError: so many machines", 3),
        ("gives", "TypeError: it gave an object of function, which is no decision", 3),
        ("forks", None, 3),
    ],
)
def test_run_goes_on_with_the_last_decision(
    how: str, problem: str | None, third: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    contained = ContainedPolicy(policy_for_run("mine_of_a_user:Mine", {"how": how}), lambda line: None)
    first = contained.decide(seen(machine("a")))
    monkeypatch.setattr(policy_process, "ANSWER_SECONDS", 1.0 if how == "hangs" else 20.0)
    second = contained.decide(seen(machine("a")))
    monkeypatch.setattr(policy_process, "ANSWER_SECONDS", 20.0)
    assert (first.reason, first.problem, second.problem) == ("for the 1. time", None, problem)
    assert second.actions == first.actions or problem is None
    assert contained.decide(seen(machine("a"))).reason == f"for the {third}. time"
    assert capfd.readouterr().out == ""


def test_process_that_ends_each_time_is_not_begun_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_process, "STARTS", 1)
    policy = policy_for_run("mine_of_a_user:Mine", {"how": "exits"})
    policy.decide(seen(machine("a")))
    with pytest.raises(policy_process.PolicyEndedError, match=r"^its process ended with status 7$"):
        policy.decide(seen(machine("a")))
    with pytest.raises(policy_process.PolicyEndedError, match=r"^its process is not begun again: its process ended"):
        policy.decide(seen(machine("a")))


def test_shipped_policies_have_no_process_and_mistakes_are_told_at_once() -> None:
    assert isinstance(policy_for_run("steady", {}), Steady)
    assert isinstance(policy_for_run("mine_of_a_user:Mine", {}), PolicyProcess)
    with pytest.raises(UsageError, match="has no Yours"):
        policy_for_run("mine_of_a_user:Yours", {})
