"""Looks at whether workers go on, and for them at what front-ends' processes show.

A worker is confined, and Landlock does not let it see the descriptors of other processes. Of these it has to know a
VFIO device or a userfaultfd: discards are unsafe then.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from host.supervision.packets import Kind, Packet
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import WorkerProcess

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether each worker answers."""

CHECKS_MISSED: Final = 2
"""Looks in a row at which a worker had not answered, after which it is killed. They are counted, and not seconds: when
all processes have been stopped and go on, nothing is said of a worker yet."""

PATIENCE: Final = CHECK_INTERVAL * CHECKS_MISSED


class WorkerWatch:
    """Looks from time to time at whether ``workers`` answer, and kills one that does not.

    A worker that sleeps has answered, and says so when it wakes up. So there is no look while all of them sleep. One
    that has not begun does not answer: on a host whose machines all start it waits for its turn. If none of those
    begins, ``on_none_begins`` is called: what forks them does not go on.

    ``look`` returns what the descriptors of a process show, as a number that workers understand. It is called on a
    thread, for the processes of a worker's machines when these begin and when it wakes up: every few seconds while it
    does something.
    """

    def __init__(
        self,
        workers: Callable[[], Collection[WorkerProcess]],
        on_none_begins: Callable[[], None],
        look: Callable[[int], int],
    ) -> None:
        self._workers = workers
        self._on_none_begins = on_none_begins
        self._look_at_process = look
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._not_begun: set[str] = set()
        self._none_begins = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: dict[int, int] = {}

    def awake(self, worker: WorkerProcess, first: bool) -> None:
        """Take note that ``worker`` does something, for the ``first`` time since it answered."""
        if first and not self._closed:
            self._begin_look({vm.process for vm in worker.vms.values()})
        self._need()

    def need_all(self) -> None:
        """Look at all workers in a while: one may have been stopped in its sleep."""
        for worker in self._workers():
            worker.is_awake = True
        self._need()

    def serve(self, worker: WorkerProcess, vm: SupervisedVm) -> None:
        """Have ``worker`` serve ``vm``, with what is known of its process, and look at that now."""
        if vm.process in self._known:
            self._tell(worker, {vm.process: self._known[vm.process]})
        worker.serve(vm)
        self._begin_look({vm.process})

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _need(self) -> None:
        if self._timer is not None or self._closed:
            return
        if any(worker.is_to_check or worker.is_to_begin for worker in self._workers()):
            self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check)

    def _check(self) -> None:
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
        self._need()

    def _begin_look(self, processes: Iterable[int]) -> None:
        if known := {process for process in processes if process > 0}:
            task = asyncio.get_running_loop().create_task(self._look_at(known))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look_at(self, processes: set[int]) -> None:
        found = await asyncio.to_thread(lambda: {process: self._look_at_process(process) for process in processes})
        new = {process: signs for process, signs in found.items() if self._known.get(process) != signs}
        present = {vm.process for worker in self._workers() for vm in worker.vms.values()}
        self._known = {process: signs for process, signs in (self._known | new).items() if process in present}
        for worker in self._workers():
            its = {vm.process for vm in worker.vms.values()} & new.keys()
            if its:
                self._tell(worker, {process: new[process] for process in its})

    @staticmethod
    def _tell(worker: WorkerProcess, signs: dict[int, int]) -> None:
        worker.send(Packet(Kind.SIGNS, 0, json.dumps(list(signs.items())).encode()))
