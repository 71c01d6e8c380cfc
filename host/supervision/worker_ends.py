"""How long a machine waits for its next worker when workers end again and again."""

from collections.abc import Iterable
from typing import Final

from host.supervision.supervised_vm import SupervisedVm

SOON: Final = 0.25
"""Seconds within which the end of a worker counts as one at its start."""

ENDS_FREE: Final = 3
"""Ends at the start, in a row, after which there is no wait yet."""

AFTER_TAKEOVER: Final = 0.1
"""What the end of a worker counts that had taken over all that it was to serve: something else may kill them."""

BACK_OFF_FIRST: Final = 0.1
BACK_OFF_LONGEST: Final = 10.0
"""Seconds until a worker that ends at its start is started again, twice as long each time, up to the longest."""


def count_end(vms: Iterable[SupervisedVm], *, soon: bool) -> int:
    """Count the end of the worker of ``vms``. Return how many have ended at their start in a row."""
    most = 0.0
    for vm in vms:
        weight = AFTER_TAKEOVER if vm.is_served else 1.0
        vm.quick_ends = vm.quick_ends + weight if soon else 0.0
        vm.is_served = False
        most = max(most, vm.quick_ends)
    return int(most)


def back_off(ends: int) -> float:
    """Return the seconds to wait after so many ends in a row."""
    return float(min(BACK_OFF_FIRST * 2 ** (ends - ENDS_FREE - 1), BACK_OFF_LONGEST)) if ends > ENDS_FREE else 0.0
