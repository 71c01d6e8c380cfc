"""How long a machine waits for its next worker when workers end again and again."""

from typing import Final

from host.supervision.supervised_vm import SOON
from host.supervision.worker_process import WorkerProcess

ENDS_FREE: Final = 3
"""Ends at the start, in a row, after which there is no wait yet."""

BACK_OFF_FIRST: Final = 0.1
BACK_OFF_LONGEST: Final = 10.0
"""Seconds until a worker that ends at its start is started again, twice as long each time, up to the longest."""


def ends_at_start(worker: WorkerProcess) -> int:
    """Return how many workers have ended at their start in a row, up to ``worker``: those of its machines, or if it had
    no machine those with its number."""
    if worker.vms:
        return int(max(vm.quick_ends for vm in worker.vms.values()))
    soon = worker.began is None or worker.gone_at - worker.began < SOON
    return worker.early_ends + 1 if soon else 0


def back_off(ends: int) -> float:
    """Return the seconds to wait after so many ends in a row."""
    return float(min(BACK_OFF_FIRST * 2 ** (ends - ENDS_FREE - 1), BACK_OFF_LONGEST)) if ends > ENDS_FREE else 0.0
