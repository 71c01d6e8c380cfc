"""A driver whose device has a fault of ours: it is told what followed, and FAILs only if it went away."""

import pytest

from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.misbehaving import STAYS, under_fault
from scripts.check.driver.observation import Observed
from scripts.check.suite import Case
from scripts.check.verdict import Failed, Found
from tests.scripts.check.driver.observed import well_behaved, with_marks


def case_under_fault(name: str) -> Case[Observed]:
    return under_fault(DRIVER_CASES[name], "every-second-interrupt")


def test_what_follows_from_the_fault_is_a_finding() -> None:
    seen = with_marks(statistics=99)
    with pytest.raises(Failed, match="statistics were asked for 99 times"):
        DRIVER_CASES["driver-statistics"].run(seen)
    with pytest.raises(Found, match=r"^with the fault every-second-interrupt: statistics were asked") as caught:
        case_under_fault("driver-statistics").run(seen)
    assert caught.value.clauses == ("BS-3",)


def test_driver_that_copes_passes() -> None:
    case_under_fault("driver-statistics").run(well_behaved())


def test_driver_that_goes_away_fails() -> None:
    seen = with_marks(ended_by_us=False)
    seen.events.append({"event": "disconnected", "reason": "front-end gone"})
    with pytest.raises(Failed, match="the driver went away"):
        case_under_fault(STAYS).run(seen)
