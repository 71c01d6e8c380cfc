"""Whether the workers of a supervisor go on: it looks at them from time to time."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from host.supervision.worker_process import WorkerProcess

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether each worker answers."""

CHECKS_MISSED: Final = 2
"""Looks in a row at which a worker had not answered, after which it is killed. They are counted, and not seconds: when
all processes have been stopped and go on, nothing is said of a worker yet."""

PATIENCE: Final = CHECK_INTERVAL * CHECKS_MISSED

log = logging.getLogger(__name__)


class WorkerChecks:
    """Looks from time to time at whether ``workers`` answer, and kills one that does not.

    A worker that sleeps has answered, and says so when it wakes up. So there is no look while all of them sleep. One
    that has not begun does not answer: on a host whose machines all start it waits for its turn. If none of those
    begins, ``on_none_begins`` is called: what forks them does not go on.
    """

    def __init__(self, workers: Callable[[], Collection[WorkerProcess]], on_none_begins: Callable[[], None]) -> None:
        self._workers = workers
        self._on_none_begins = on_none_begins
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._not_begun: set[str] = set()
        self._none_begins = 0

    def need(self) -> None:
        """Look in a while, if there is a worker to look at."""
        if self._timer is not None or self._closed:
            return
        if any(worker.is_to_check or worker.is_to_begin for worker in self._workers()):
            self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._look)

    def need_all(self) -> None:
        """Look at all workers in a while: one may have been stopped in its sleep."""
        for worker in self._workers():
            worker.wake()

    def _look(self) -> None:
        self._timer = None
        for worker in list(self._workers()):
            if worker.is_to_check and worker.check() == CHECKS_MISSED:
                log.warning("worker %d has not answered for %.0f s and is killed", worker.number, PATIENCE)
                worker.kill()
        not_begun = {worker.link for worker in self._workers() if worker.is_to_begin}
        self._none_begins = self._none_begins + 1 if self._not_begun and self._not_begun <= not_begun else 0
        self._not_begun = not_begun
        if self._none_begins == CHECKS_MISSED:
            log.warning("no worker has begun for %.0f s: the process that forks them is started again", PATIENCE)
            self._on_none_begins()
        self.need()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
