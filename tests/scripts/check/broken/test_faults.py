"""Broken devices and drivers: each fault names cases that there are, and a sample of them is caught here.

``balloon-check broken`` tries all of them, which takes a minute: continuous integration does.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from scripts.check.__main__ import main
from scripts.check.broken.device_faults.all_faults import ALL_FAULTS
from scripts.check.broken.devices import cases_of, try_fault
from scripts.check.broken.driver_faults.all_driver_faults import ALL_DRIVER_FAULTS
from scripts.check.broken.drivers import try_driver
from scripts.check.broken.fence_faults import FENCE_FAULTS, try_fence
from scripts.check.broken.forked_devices import ForkedDevices
from scripts.check.broken.trying import Trying, crash_of, try_until_caught
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.verdict import Result, Verdict
from tests.harness.processes import ROOT

SAMPLE = (
    "used-length-one",
    "used-index-before-element",
    "event-index-never",
    "every-second-interrupt",
    "packed-wrap-not-flipped",
    "indirect-at-head-only",
    "in-order-swapped",
    "draft-bitmap-backwards",
    "acknowledged-first",
    "discarded-twice",
    "one-page-too-many",
    "rounded-outward",
    "inflate-wrong-shift",
    "poison-ignored",
    "poison-kept-over-reset",
    "first-page-of-region-stays",
    "hint-id-low-byte",
    "get-base-zero",
    "fd-leak",
    "hints-after-stop",
    "num-pages-writable",
    "reset-ignored",
)


DRIVER_SAMPLE = ("reported-page-used", "statistics-once", "kicks-never", "poison-late")


def test_there_are_faults_enough() -> None:
    assert len(ALL_FAULTS) + len(FENCE_FAULTS) >= 60
    assert len(ALL_DRIVER_FAULTS) >= 12
    assert not ALL_DRIVER_FAULTS.keys() & ALL_FAULTS.keys()
    assert len(FENCE_FAULTS) == 8


@pytest.mark.parametrize("name", sorted(ALL_FAULTS))
def test_fault_names_cases_that_there_are(name: str) -> None:
    fault = ALL_FAULTS[name]
    assert fault.caught_by
    assert {case.name for cases in cases_of(fault) for case in cases} == set(fault.caught_by)
    assert fault.says.endswith(".")


@pytest.mark.parametrize("name", sorted(ALL_DRIVER_FAULTS))
def test_driver_fault_names_cases_that_there_are(name: str) -> None:
    fault = ALL_DRIVER_FAULTS[name]
    assert fault.caught_by
    assert set(fault.caught_by) <= {case.name for case in DRIVER_CASES}
    assert fault.says.endswith(".")


def test_no_case_of_the_device_has_the_name_of_a_generic_one() -> None:
    assert not {case.name for case in DEVICE_CASES} & {case.name for case in GENERIC_CASES}


def test_fault_whose_own_code_fails_is_not_caught() -> None:
    said = (
        'ERROR serving queue 4 failed\nTraceback (most recent call last):\n  File "x", line 1\nTypeError: 2 arguments\n'
    )
    assert crash_of(said) == "TypeError: 2 arguments"
    assert crash_of("vm 1: its memory is 64 MiB\n") == ""
    fault = ALL_FAULTS["used-length-one"]
    caught = [Result(case=name, verdict=Verdict.FAIL, clauses=()) for name in fault.caught_by]
    assert Trying(fault, caught).is_caught
    assert not Trying(fault, caught, crash_of(said)).is_caught


@pytest.fixture(scope="module")
def devices() -> Iterator[ForkedDevices]:
    with ForkedDevices() as forked:
        yield forked


@pytest.mark.processes
@pytest.mark.parametrize("name", SAMPLE)
def test_fault_is_caught(name: str, devices: ForkedDevices) -> None:
    trying = try_until_caught(ALL_FAULTS[name], partial(try_fault, devices=devices))
    assert trying.is_caught, trying.results


@pytest.mark.processes
@pytest.mark.parametrize("name", DRIVER_SAMPLE)
def test_driver_fault_is_caught(name: str) -> None:
    trying = try_until_caught(ALL_DRIVER_FAULTS[name], try_driver)
    assert trying.is_caught, (trying.results, trying.crash)


@pytest.mark.processes
def test_broken_driver_can_be_had_alone(tmp_path: Path) -> None:
    path = tmp_path / "none"
    command = [sys.executable, "-m", "scripts.check", "broken", "--drive", "kicks-never", "--socket-path", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=False)
    assert done.returncode == 1
    assert str(path) in done.stderr  # it is the guest, and looks for a device there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--drive", "reported-page"), "no fault of a driver is called 'reported-page'"),
        (("--drive", "reported-twice"), "--drive needs --socket-path"),
        (("--serve", "reported-twice"), "no fault of a device is called 'reported-twice'"),
    ],
)
def test_mistake_is_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broken", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FENCE_FAULTS))
def test_missing_fence_is_caught(name: str) -> None:
    assert try_fence(FENCE_FAULTS[name]).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere/socket", "--socket-path /nowhere/socket: No such file or directory"),
        ("/", "--socket-path /: exists and is not a socket"),
        ("/tmp/" + 120 * "x", "AF_UNIX path too long"),
    ],
)
def test_device_that_cannot_listen_is_one_line(capsys: pytest.CaptureFixture[str], path: str, reason: str) -> None:
    assert main(["broken", "--serve", "used-length-one", "--socket-path", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("balloon-check: ")
    assert reason in error
    assert error.count("\n") == 1


def test_empty_path_of_a_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["broken", "--serve", "used-length-one", "--socket-path", ""])
    assert ended.value.code == 2
    assert "an empty path" in capsys.readouterr().err
