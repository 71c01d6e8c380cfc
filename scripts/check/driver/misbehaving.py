"""Cases of a driver whose device has a fault of ours: what follows from the fault is not the driver's."""

from dataclasses import replace
from typing import Final

from scripts.check.driver.observation import Observed
from scripts.check.suite import Case
from scripts.check.verdict import Failed, Found

STAYS: Final = "driver-attached"
"""The case that a driver fails which did not live through the fault."""


def under_fault(case: Case[Observed], fault: str) -> Case[Observed]:
    """Return ``case`` so that its FAIL is a FINDING that names the fault; that of :data:`STAYS` stays one."""
    if case.name == STAYS:
        return case

    def run(seen: Observed) -> None:
        try:
            case.run(seen)
        except Failed as failed:
            raise Found(f"with the fault {fault}: {failed.reason}", *failed.clauses) from failed

    return replace(case, run=run)
