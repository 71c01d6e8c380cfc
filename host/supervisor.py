"""The supervisor: it has virtual machines served by worker processes, and goes on without those that die.

It keeps of each machine what another worker needs (:mod:`host.supervision.supervised_vm`), and knows nothing of what
that means: it maps no guest memory, parses no ring and reads no descriptor of a front-end.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.control.daemon_status import DaemonStatus
from host.peers.peers import SESSIONS_MAX, shared_descriptors
from host.qmp.qmp import Request
from host.service_manager.service_manager import UNMANAGED, HandedOver, ServiceManager
from host.supervision.machines import Notices, Unnoticed
from host.supervision.packets import Kind, Packet
from host.supervision.process_sessions import Admission, ProcessSessions
from host.supervision.stored_machines import FormerWorker, StoredMachines
from host.supervision.supervised_vm import SupervisedVm, close_aside
from host.supervision.worker_commands import WorkerCommands
from host.supervision.worker_process import WorkerChecks, WorkerProcess, ZygoteGone
from host.supervision.zygote import Zygote, restart_zygote
from host.vm_store.vm_store import KeptVm
from protocol.errors import BalloonError
from protocol.process.events import EventLog

if TYPE_CHECKING:
    from host.control.control_commands import ControlCommands

log = logging.getLogger(__name__)

SOON: Final = 0.25
"""Seconds within which the end of a worker counts as one at its start."""

ENDS_FREE: Final = 3
"""Ends at the start, in a row, after which there is no wait yet."""

AFTER_TAKEOVER: Final = 0.1
"""What the end of a worker counts that had taken over all that it was to serve: something else may kill them."""

BACK_OFF_FIRST: Final = 0.1
BACK_OFF_LONGEST: Final = 10.0
"""Seconds until a worker that ends at its start is started again, twice as long each time, up to the longest."""

WAITING_MAX: Final = 16 * SESSIONS_MAX
"""Connections of one process that may wait for sessions of it to be released, a few thousand that come and go."""

STOP_PATIENCE: Final = 0.5
"""Seconds that the workers have to end."""


class Supervisor:
    """Serves virtual machines in ``pool`` worker processes, or in one for each if ``pool`` is 0."""

    def __init__(
        self,
        zygote: Zygote,
        pool: int,
        events: EventLog,
        version: Mapping[str, Any],
        status: DaemonStatus,
        manager: ServiceManager = UNMANAGED,
        handed_over: HandedOver | None = None,
    ) -> None:
        """``manager`` keeps what counts of each machine, and has ``handed_over`` what it kept for an earlier
        supervisor."""
        self.notices: Notices = Unnoticed()
        self._zygote = zygote
        self._pool = pool
        self._events = events
        self._status = status
        self._vms: dict[int, SupervisedVm] = {}
        self._workers: dict[int, WorkerProcess] = {}
        local = cache(partial(_local_commands, version, status))
        self._sessions = ProcessSessions(SESSIONS_MAX, min(WAITING_MAX, shared_descriptors() // 4))
        self._commands = WorkerCommands(self._vms, self._workers, local, status.describe, self._sessions.waits)
        self._taking_over: dict[int, float] = {}
        self._complained: set[int] = set()
        self._manager = manager
        self._handed_over = HandedOver() if handed_over is None else handed_over
        self._former: set[FormerWorker] = set()
        self._last_number = 0
        self._checks = WorkerChecks(self._workers.values)
        self._stops = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()
        self._all_ended = asyncio.Event()

    @property
    def held_up(self) -> bool:
        """False: no thread of this process works for a front-end."""
        return False

    def start(self) -> None:
        """Start the workers of the pool."""
        for _ in range(self._pool):
            self._start_worker()
        self._go_on()
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGCHLD, self._checks.need_all
        )  # one may have been stopped

    def _go_on(self) -> None:
        # Goes on with the machines of an earlier supervisor, each once its worker has ended and all of that is known.
        stored = StoredMachines(self._manager, self._handed_over)
        gone = self._on_former_gone
        former = {link: FormerWorker(link, sock, self._on_packet, gone) for link, sock in stored.links.items()}
        self._former |= set(former.values())
        for vm in stored.vms:
            self._status.sessions = max(self._status.sessions, vm.number)
            if self._sessions.admit(vm) is Admission.REFUSED:
                vm.close()
                continue
            self._vms[vm.number] = vm
            self._none_left.clear()
            self._taking_over[vm.number] = time.monotonic()
            if (worker := former.get(vm.link)) is not None:
                worker.vms[vm.number] = vm
            else:
                self._go_on_with(vm)

    def _on_former_gone(self, worker: FormerWorker) -> None:
        self._former.discard(worker)
        self._manager.remove(worker.link)
        for vm in list(worker.vms.values()):
            self._go_on_with(vm)

    def _go_on_with(self, vm: SupervisedVm) -> None:
        if self._stops or not self._lasts(vm):
            return
        if vm.waiting:
            self._begin(vm.send_reply(b"", ()))
        if not self._sessions.waits(vm):
            self._begin_session(vm)

    def _start_worker(self, number: int | None = None, *, alone: bool = False) -> WorkerProcess:
        if number is None:
            self._last_number += 1
            number = self._last_number
        try:
            worker = self._fork_worker(number)
        except ZygoteGone as error:
            log.warning("%s; it is started again", error)
            self._zygote.close()
            self._zygote.reap()
            self._zygote = restart_zygote()
            worker = self._fork_worker(number)
        worker.on_awake = self._checks.need
        worker.set_log_level(self._status.log_level)
        if alone or not self._pool:
            worker.be_alone()
        self._workers[number] = worker
        return worker

    def _fork_worker(self, number: int) -> WorkerProcess:
        return WorkerProcess(number, self._zygote, self._on_packet, self._on_gone, self._manager)

    def serve(self, vm: int, sock: socket.socket, *, device: DeviceOptions = DEFAULT_DEVICE) -> None:
        """Have the virtual machine at the other end of ``sock`` served, with this ``device``."""
        record = SupervisedVm(vm, sock, device)
        admission = self._sessions.admit(record)
        if admission is Admission.REFUSED:
            record.close()
            return
        if self._manager.keeps:
            try:
                record.keep(KeptVm.begin(self._manager, vm))
            except OSError as error:  # no descriptor or no memory is left
                log.warning("vm %d: its session would not outlive this process: %s", vm, error.strerror)
        self._vms[vm] = record
        self._none_left.clear()
        if admission is Admission.BEGINS:
            self._begin_session(record)

    def _begin_session(self, vm: SupervisedVm) -> None:
        if self._stops:
            return
        try:
            shares = self._pool and not vm.alone
            worker = self._idlest() if shares else self._start_worker(alone=vm.alone)
        except BalloonError as error:
            log.warning("vm %d: %s", vm.number, error)
            self._forget(vm.number)
            return
        worker.serve(vm)

    def _idlest(self) -> WorkerProcess:
        alive = [worker for worker in self._workers.values() if not worker.gone and not worker.alone]
        return min(alive, key=lambda worker: (len(worker.vms), worker.number)) if alive else self._start_worker()

    # -- what workers say -------------------------------------------------------------------------------------------

    def _on_packet(self, worker: WorkerProcess | FormerWorker, packet: Packet) -> None:
        match packet.kind:
            case Kind.EVENTS:
                self._events.pass_on(packet.body.decode())
            case Kind.NOTICE:
                self._notice(*json.loads(packet.body))
            case _:
                vm = self._vms.get(packet.vm)
                if vm is None or vm.number not in worker.vms:  # of one that was moved apart this may come again
                    close_aside(packet.fds)
                elif not vm.counts_already(worker.link, packet.number):
                    self._on_session(worker, vm, packet)
                elif vm.waiting:
                    self._begin(vm.send_reply(b"", packet.fds))
                else:
                    close_aside(packet.fds)

    def _on_session(self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm, packet: Packet) -> None:
        vm.is_served = True
        match packet.kind:
            case Kind.PIECE:
                vm.came(packet)
            case Kind.TAKEN:
                vm.taken()
            case Kind.RECORD:
                vm.record(packet)
            case Kind.HANDLED:
                reply = vm.handled(packet)
                vm.note(worker.link, packet.number)
                if reply:
                    vm.try_to_send(packet.fds)
                    self._begin(self._reply(worker, vm, reply, packet.fds))
                return
            case Kind.JOURNAL:
                vm.changed(packet)
                if isinstance(worker, WorkerProcess):
                    self._tell_taken_over(worker, vm)
            case Kind.ENDED:
                worker.vms.pop(vm.number, None)
                self._forget(vm.number)
                if worker.alone and not worker.vms:
                    worker.send(Packet(Kind.STOP))
                return
            case Kind.LEFT:
                vm.alone = True  # its memory can be cut short
                vm.note(worker.link, packet.number)
                self._move_apart(worker, vm)
                return
            case _:
                log.error("worker %d: a packet of kind %d", worker.number, packet.kind)
        vm.note(worker.link, packet.number)

    def _move_apart(self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm) -> None:
        del worker.vms[vm.number]
        vm.is_served = False
        self._taking_over[vm.number] = time.monotonic()
        if self._stops or not self._lasts(vm):
            return
        try:
            self._start_worker(alone=True).serve(vm)
        except BalloonError as error:
            log.warning("vm %d: %s", vm.number, error)
            self._forget(vm.number)

    async def _reply(
        self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm, reply: bytes, fds: tuple[int, ...]
    ) -> None:
        problem = await vm.send_reply(reply, fds)
        worker.send(Packet(Kind.SENT, vm.number, problem.encode()))

    def _notice(self, call: str, *arguments: Any) -> None:
        match call:
            case "emit":
                self.notices.emit(*arguments)
            case "balloon_changed":
                self.notices.balloon_changed(*arguments)
            case _:
                self.notices.forget(*arguments)

    def _forget(self, number: int) -> None:
        vm = self._vms.pop(number)
        next_one = self._sessions.forget(vm)
        vm.close()
        self._taking_over.pop(number, None)
        self._complained.discard(number)
        self._commands.forget(number)
        if not self._vms:
            self._none_left.set()
        if next_one is not None:
            asyncio.get_running_loop().call_soon(self._begin_session, next_one)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- workers that end -------------------------------------------------------------------------------------------

    def _on_gone(self, worker: WorkerProcess) -> None:
        how = worker.reap()
        self._workers.pop(worker.number, None)
        if self._stops and not self._workers:
            self._all_ended.set()
        if self._stops or (worker.alone and not worker.vms):
            return
        now = time.monotonic()
        ended_soon = now - worker.began < SOON
        vms = sorted(worker.vms)
        self._events.emit("worker_ended", worker=worker.number, pid=worker.pid, reason=how, vms=vms)
        for vm in worker.vms.values():
            weight = AFTER_TAKEOVER if vm.is_served else 1.0
            vm.quick_ends = vm.quick_ends + weight if ended_soon else 0.0
            vm.is_served = False
            self._taking_over.setdefault(vm.number, now)
        ends = int(max((vm.quick_ends for vm in worker.vms.values()), default=float(ended_soon)))
        if ends <= ENDS_FREE:
            names = ", ".join(map(str, vms)) or "none"
            log.warning("worker %d has ended (%s); vm %s: another one goes on", worker.number, how, names)
            self._replace(worker)
            return
        wait = min(BACK_OFF_FIRST * 2 ** (ends - ENDS_FREE - 1), BACK_OFF_LONGEST)
        if vms and ends == ENDS_FREE + 1 and not self._complained & set(vms):
            self._complained |= set(vms)
            log.warning("worker %d ends at its start (%s): the next one waits, longer each time", worker.number, how)
        asyncio.get_running_loop().call_later(wait, self._replace, worker)

    def _replace(self, ended: WorkerProcess) -> None:
        if self._stops:
            return
        vms = []
        for vm in ended.vms.values():
            if vm.number in self._vms and self._lasts(vm):
                vms.append(vm)
        try:
            # Machines whose workers end again and again are parted: the one that is at fault takes no other with it.
            parted = vms[1:] if len(vms) > 1 and max(vm.quick_ends for vm in vms) >= ENDS_FREE else []
            worker = self._start_worker(ended.number, alone=ended.alone)
            self._status.worker_restarts += 1
            for vm in vms:
                (self._start_worker() if vm in parted else worker).serve(vm)
        except BalloonError as error:
            log.error("%s", error)

    def _lasts(self, vm: SupervisedVm) -> bool:
        # Ends the session of a machine that cannot go on.
        if not vm.lasts:
            log.error("vm %d: its session ends with its worker, descriptors of it found no room here", vm.number)
            self._forget(vm.number)
        return vm.lasts

    def _tell_taken_over(self, worker: WorkerProcess, vm: SupervisedVm) -> None:
        since = self._taking_over.pop(vm.number, None)
        if since is not None:
            seconds = round(time.monotonic() - since, 6)
            self._events.emit("taken_over", vm=vm.number, worker=worker.number, pid=worker.pid, seconds=seconds)

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""
        return await self._commands.perform(request)

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns."""
        return await self._commands.query(name)

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people."""
        return await self._commands.status()

    # -- the end ----------------------------------------------------------------------------------------------------

    async def all_gone(self) -> None:
        """Return when no virtual machine is served."""
        if self._vms:
            await self._none_left.wait()

    @property
    def outlives(self) -> bool:
        """Whether the sessions can go on in another process, after :meth:`let_go`."""
        return self._manager.keeps

    async def finish(self) -> None:
        """End every session, and serve no more."""
        await self._stop_workers(lambda worker: worker.send(Packet(Kind.STOP)))
        for vm in list(self._vms):
            self._forget(vm)

    async def let_go(self) -> None:
        """Serve no more, in the middle of what is being done: what counts of each machine is kept."""
        await self._stop_workers(WorkerProcess.kill)
        for task in self._tasks:
            task.cancel()
        for vm in self._vms.values():
            vm.let_go()

    async def _stop_workers(self, stop: Callable[[WorkerProcess], None]) -> None:
        self._stops = True
        self._checks.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        for former in self._former:
            former.close()
        for worker in self._workers.values():
            stop(worker)
        if self._workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_PATIENCE):
                    await self._all_ended.wait()
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            worker.reap(tries=20)  # one that a front-end holds up ends when that one pleases
        self._zygote.close()


def _local_commands(version: Mapping[str, Any], status: DaemonStatus) -> "ControlCommands":
    from host.control.control_commands import ControlCommands  # late: the first client waits for it, and not the start

    return ControlCommands({}, time.time, version, status)
