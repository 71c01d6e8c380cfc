"""A device that ends in a case: that case fails, whatever it saw, and those left are not tried."""

from collections.abc import Sequence
from typing import Any

import pytest

from scripts.check.device.trial import DeviceSuite, Trial, fresh_trial
from scripts.check.machine.machine import Device, Machine
from scripts.check.run import run_cases
from scripts.check.suite import CaseFunction
from scripts.check.verdict import Failed, HungUpError, Result, TargetError, Verdict


class MortalDevice(Device):
    """A device that a case can end, and that is started again as long as ``lives`` are left."""

    def __init__(self, lives: int, *, tells: bool = False) -> None:
        self.name = "a mortal device"
        self.offered = 0
        self.lives = lives
        self.dead = False
        self.tells = tells

    def check_reachable(self) -> None:
        if self.dead:
            self.lives -= 1
        if not self.lives:
            raise TargetError("nothing listens")
        self.dead = False

    def how_it_ended(self) -> str:
        return "killed by SIGABRT" if self.dead and self.tells else ""

    def machine(self, **options: Any) -> Machine:
        raise TargetError("no machine is asked for here")


def device_of(trial: Trial) -> MortalDevice:
    assert isinstance(trial.device, MortalDevice)
    return trial.device


def passes(trial: Trial) -> None:
    """It passes."""


def ends(trial: Trial) -> None:
    """It passes, and the device ends."""
    device_of(trial).dead = True


def ends_and_is_cut_off(trial: Trial) -> None:
    """The connection ends with the device."""
    device_of(trial).dead = True
    raise HungUpError("the back-end ended the connection")


def ends_and_waits(trial: Trial) -> None:
    """The device ends, and a buffer stays away."""
    device_of(trial).dead = True
    raise Failed("0 of 1 buffers came back", "S-17")


def ends_and_goes_on(trial: Trial) -> None:
    """The device ends unseen, and another machine is brought up."""
    device_of(trial).dead = True
    trial.machine()


def judged(device: MortalDevice, runs: Sequence[CaseFunction[Trial]]) -> list[Result]:
    suite = DeviceSuite("mortal")
    for number, run in enumerate(runs):
        suite.case(f"case-{number}", clauses=("BR-7", "M-safe"))(run)
    return list(run_cases(list(suite), lambda: fresh_trial(device)))


@pytest.mark.parametrize("last", [ends, ends_and_is_cut_off, ends_and_waits])
def test_device_that_dies_fails_one_case(last: CaseFunction[Trial]) -> None:
    results = judged(MortalDevice(1), [passes, last, passes, passes])
    assert [one.verdict for one in results] == [Verdict.PASS, Verdict.FAIL, *[Verdict.NOT_EXERCISED] * 2]
    assert results[1].broken == ("M-alive",)
    assert results[2].reason == "the target is gone: nothing listens"


@pytest.mark.parametrize("last", [ends, ends_and_is_cut_off, ends_and_waits])
def test_device_that_dies_in_the_last_case_fails_it(last: CaseFunction[Trial]) -> None:
    results = judged(MortalDevice(1), [passes, last])
    assert [(one.verdict, one.broken) for one in results] == [(Verdict.PASS, ()), (Verdict.FAIL, ("M-alive",))]


@pytest.mark.parametrize("last", [ends, ends_and_is_cut_off, ends_and_waits, ends_and_goes_on])
def test_device_that_is_started_again_fails_the_case_in_which_it_died(last: CaseFunction[Trial]) -> None:
    results = judged(MortalDevice(9, tells=True), [last, passes, last])
    assert [one.verdict for one in results] == [Verdict.FAIL, Verdict.PASS, Verdict.FAIL]
    assert {one.broken for one in (results[0], results[2])} == {("M-alive",)}
    assert results[0].reason.startswith("killed by SIGABRT")


def test_device_that_cannot_be_started_again_fails_one_case() -> None:
    results = judged(MortalDevice(1, tells=True), [passes, ends_and_waits, passes])
    assert [one.verdict for one in results] == [Verdict.PASS, Verdict.FAIL, Verdict.NOT_EXERCISED]
    assert results[1].broken == ("M-alive",)
