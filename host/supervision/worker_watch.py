"""Looks every few seconds at whether workers answer, and for them at what front-ends' processes show.

A worker is confined, and Landlock does not let it see the descriptors of other processes. Of these it has to know a
VFIO device or a userfaultfd: discards are unsafe then.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from host.supervision.packets import Kind, Packet
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import WorkerProcess

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks."""

CHECKS_MISSED: Final = 2
"""Looks in a row at which a worker had not answered, after which it is killed. They are counted, and not seconds: when
all processes have been stopped and go on, nothing is said of a worker yet."""

LOOKS: Final = 2
"""Every so many checks all processes are looked at."""


class WorkerWatch:
    """Watches ``workers``, which change. ``look`` returns what the descriptors of a process show, as a number that
    workers understand; it is called on a thread."""

    def __init__(self, workers: Mapping[int, WorkerProcess], look: Callable[[int], int]) -> None:
        self._workers = workers
        self._look = look
        self._checks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: dict[int, int] = {}

    def start(self) -> None:
        """Look from now on."""
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def serve(self, worker: WorkerProcess, vm: SupervisedVm) -> None:
        """Have ``worker`` serve ``vm``, with what is known of its process, and look at that now."""
        if vm.process in self._known:
            self._tell(worker, {vm.process: self._known[vm.process]})
        worker.serve(vm)
        if vm.process:
            self._begin_look({vm.process})

    def _check(self) -> None:
        self.start()
        self._checks += 1
        for worker in self._workers.values():
            if worker.vms and not worker.gone and worker.check() == CHECKS_MISSED:
                seconds = CHECK_INTERVAL * CHECKS_MISSED
                log.warning("worker %d has not answered for %.0f s and is killed", worker.number, seconds)
                worker.kill()
        if self._checks % LOOKS == 0:
            processes = {vm.process for worker in self._workers.values() for vm in worker.vms.values()} - {0}
            self._known = {process: signs for process, signs in self._known.items() if process in processes}
            self._begin_look(processes)

    def _begin_look(self, processes: Iterable[int]) -> None:
        task = asyncio.get_running_loop().create_task(self._look_at(list(processes)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_at(self, processes: list[int]) -> None:
        found = await asyncio.to_thread(lambda: {process: self._look(process) for process in processes})
        self._known.update(found)
        for worker in self._workers.values():
            its = {vm.process for vm in worker.vms.values()} & found.keys()
            if its:
                self._tell(worker, {process: found[process] for process in its})

    @staticmethod
    def _tell(worker: WorkerProcess, signs: Mapping[int, int]) -> None:
        worker.send(Packet(Kind.SIGNS, 0, json.dumps(list(signs.items())).encode()))
