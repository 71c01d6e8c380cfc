"""Broken devices: each fault names cases that there are, and a sample of them is caught here.

``balloon-check broken`` tries all of them, which takes a minute: continuous integration does.
"""

import pytest

from scripts.check.broken.all_faults import ALL_FAULTS
from scripts.check.broken.command import try_fault
from scripts.check.broken.fence_faults import FENCE_FAULTS, try_fence
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.verdict import Verdict

SAMPLE = (
    "used-length-one",
    "used-index-before-element",
    "event-index-never",
    "every-second-interrupt",
    "packed-wrap-not-flipped",
    "indirect-at-head-only",
    "acknowledged-first",
    "discarded-twice",
    "one-page-too-many",
    "rounded-outward",
    "inflate-wrong-shift",
    "poison-ignored",
    "hints-after-stop",
    "num-pages-writable",
    "reset-ignored",
)


def test_there_are_faults_enough() -> None:
    assert len(ALL_FAULTS) + len(FENCE_FAULTS) >= 60
    assert len(FENCE_FAULTS) == 8


@pytest.mark.parametrize("name", sorted(ALL_FAULTS))
def test_fault_names_cases_that_there_are(name: str) -> None:
    fault = ALL_FAULTS[name]
    known = {case.name for case in DEVICE_CASES}
    assert fault.caught_by
    assert set(fault.caught_by) <= known
    assert fault.says.endswith(".")


@pytest.mark.processes
@pytest.mark.parametrize("name", SAMPLE)
def test_fault_is_caught(name: str) -> None:
    trying = try_fault(ALL_FAULTS[name])
    assert trying.is_caught, trying.results


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FENCE_FAULTS))
def test_missing_fence_is_caught(name: str) -> None:
    assert try_fence(FENCE_FAULTS[name]).verdict is Verdict.FAIL
