"""Drivers and devices that lack one of the documented fences, over a model of a store buffer.

On the machine at hand a missing fence may show once in a million interrupts, or never: the model empties a processor's
store buffer only where a fence, a notification or its schedule says so.
"""

from typing import Final, NamedTuple

from scripts.check.model.wakeup import FENCES, LostWakeUpError, run_without_fence
from scripts.check.verdict import Result, Verdict


class FenceFault(NamedTuple):
    """A method of one half of a ring whose fence is left out."""

    module: str
    method: str

    @property
    def name(self) -> str:
        """The fault's name, such as ``no-fence-device-split-needs-notification``."""
        side = "driver" if self.module.startswith("guest") else "device"
        ring = "packed" if "packed" in self.module else "split"
        return f"no-fence-{side}-{ring}-{self.method.replace('_', '-')}"

    @property
    def says(self) -> str:
        """What is broken."""
        return f"The fence in {self.method} of {self.module} is left out."


FENCE_FAULTS: Final = {fault.name: fault for fault in (FenceFault(*one) for one in FENCES)}
"""All of them by their names."""

CLAUSES: Final = ("S-22", "P-15")


def try_fence(fault: FenceFault) -> Result:
    """Run the model without the fence. A wake-up that is lost is a FAIL, as it has to be."""
    verdict, reason = Verdict.PASS, ""
    try:
        run_without_fence(fault.module, fault.method)
    except LostWakeUpError as error:
        verdict, reason = Verdict.FAIL, str(error)
    return Result(case="wake-up-model", verdict=verdict, clauses=CLAUSES, broken=CLAUSES, reason=reason)
