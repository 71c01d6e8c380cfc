"""The supervisor: it has virtual machines served by worker processes, and goes on without those that die.

It keeps of each machine what another worker needs (:mod:`host.supervision.supervised_vm`), and knows nothing of what
that means: it maps no guest memory, parses no ring and reads no descriptor of a front-end.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.control.daemon_commands import commands_of_daemon
from host.control.daemon_status import DaemonStatus
from host.inhibition.front_end_look import look_at_files
from host.peers.peers import SESSIONS_MAX, shared_descriptors
from host.qmp.qmp import Request
from host.service_manager.service_manager import UNMANAGED, HandedOver, ServiceManager
from host.supervision.descriptor_shares import DescriptorShares
from host.supervision.machines import Notices, Unnoticed
from host.supervision.packets import Kind, Packet, PacketError
from host.supervision.process_sessions import Admission, ProcessSessions
from host.supervision.stored_machines import FormerWorker, StoredMachines
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_commands import WorkerCommands
from host.supervision.worker_ends import ENDS_FREE, back_off, ends_at_start
from host.supervision.worker_process import WorkerProcess, ZygoteGone
from host.supervision.worker_watch import WorkerWatch
from host.supervision.worker_words import own_lines, pass_on_notice
from host.supervision.zygote import Zygote, restart_zygote
from host.vm_store.vm_store import KeptVm
from protocol.errors import BalloonError
from protocol.process.events import EventLog

if TYPE_CHECKING:
    from host.recording.recording_relay import RecordingRelay

log = logging.getLogger(__name__)


WAITING_MAX: Final = 16 * SESSIONS_MAX
"""Connections of one process that may wait for sessions of it to be released, a few thousand that come and go."""

RETRY_INTERVAL: Final = 1.0
"""Seconds until it is tried again to start a worker, for a session that has begun or for none yet."""

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
        relay: "RecordingRelay | None" = None,
    ) -> None:
        """``manager`` keeps what counts of each machine, and has ``handed_over`` what it kept for an earlier
        supervisor. All sessions are recorded through ``relay``, if there is one."""
        self.notices: Notices = Unnoticed()
        self._zygote = zygote
        self._pool = pool
        self._events = events
        self._status = status
        self._vms: dict[int, SupervisedVm] = {}
        self._workers: dict[int, WorkerProcess] = {}
        local = cache(partial(commands_of_daemon, time.time, version, status))
        self._sessions = ProcessSessions(SESSIONS_MAX, min(WAITING_MAX, shared_descriptors() // 4))
        self._shares = DescriptorShares(shared_descriptors)
        self._commands = WorkerCommands(self._vms, self._workers, local, status.describe, self._sessions.waits)
        self._taking_over: dict[int, float] = {}
        self._complained: set[int] = set()
        self._manager = manager
        self._handed_over = HandedOver() if handed_over is None else handed_over
        self._former: set[FormerWorker] = set()
        self._last_number = 0
        self._watch = WorkerWatch(
            self._workers.values, lambda: self._zygote.kill(), lambda pid: int(look_at_files(pid))
        )
        self._relay = relay
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
        # One of them may have been stopped, in its sleep too.
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._watch.need_all)

    def _go_on(self) -> None:
        # Goes on with the machines of an earlier supervisor, each once its worker has ended and all of that is known.
        stored = StoredMachines(self._manager, self._handed_over, self._shares)
        gone = self._on_former_gone
        former = {link: FormerWorker(link, sock, self._on_packet, gone) for link, sock in stored.links.items()}
        self._former |= set(former.values())
        for number, why in stored.lost.items():
            self._status.sessions = max(self._status.sessions, number)
            self._events.emit("disconnected", vm=number, reason=why)
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
        worker.close()
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
        except OSError as error:
            raise BalloonError(f"no worker can be started: {error.strerror}") from error
        worker.on_awake = partial(self._watch.awake, worker)
        worker.set_log_level(self._status.log_level)
        if self._relay is not None:
            worker.record_to(self._relay.open)
        if alone or not self._pool:
            worker.be_alone()
        self._workers[number] = worker
        return worker

    def _fork_worker(self, number: int) -> WorkerProcess:
        with contextlib.suppress(ZygoteGone):
            return WorkerProcess(number, self._zygote, self._on_packet, self._on_gone, self._manager)
        log.warning("what forks the workers has ended; it is started again")
        self._zygote.close()
        self._zygote.reap()
        self._zygote = restart_zygote()
        return WorkerProcess(number, self._zygote, self._on_packet, self._on_gone, self._manager)

    def serve(self, vm: int, sock: socket.socket, *, device: DeviceOptions = DEFAULT_DEVICE) -> None:
        """Have the virtual machine at the other end of ``sock`` served, with this ``device``."""
        record = SupervisedVm(vm, sock, device, self._shares)
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

    def _begin_session(self, vm: SupervisedVm, *, parted: bool = False) -> None:
        if self._stops or vm.number not in self._vms:
            return
        try:
            shares = self._pool and not (vm.alone or parted)
            worker = self._idlest() if shares else self._start_worker(alone=vm.alone)
        except BalloonError as error:
            self._on_no_worker(vm, error)
        else:
            self._watch.serve(worker, vm)

    def _on_no_worker(self, vm: SupervisedVm, error: BalloonError) -> None:
        if not vm.has_begun:
            log.warning("vm %d is refused: %s", vm.number, error)
            self._forget(vm.number)
            return
        if vm.number not in self._complained:
            self._complained.add(vm.number)
            log.error("vm %d waits: %s", vm.number, error)
        asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._begin_session, vm)

    def _idlest(self) -> WorkerProcess:
        alive = [worker for worker in self._workers.values() if not worker.gone and not worker.alone]
        return min(alive, key=lambda worker: (len(worker.vms), worker.number)) if alive else self._start_worker()

    # -- what workers say -------------------------------------------------------------------------------------------

    def _on_packet(self, worker: WorkerProcess | FormerWorker, packet: Packet) -> None:
        match packet.kind:
            case Kind.EVENTS:
                self._events.pass_on(own_lines(packet.body, worker.vms))
            case Kind.NOTICE:
                pass_on_notice(packet.body, worker.vms, self.notices)
            case _:
                vm = self._vms.get(packet.vm)
                if vm is None or vm.number not in worker.vms:  # of one that was moved apart this may come again
                    worker.close_files(packet.fds)
                elif not vm.counts_already(worker.link, packet.number):
                    self._on_session(worker, vm, packet)
                elif vm.waiting:
                    self._begin(vm.send_reply(b"", packet.fds))
                else:
                    vm.close_files(packet.fds)

    def _on_session(self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm, packet: Packet) -> None:
        vm.served(time.monotonic())
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
            case Kind.LEFT if not (worker.alone or vm.alone):
                vm.alone = True  # its memory can be cut short, or the worker has no descriptors left
                vm.note(worker.link, packet.number)
                self._move_apart(worker, vm)
                return
            case _:
                raise PacketError(f"a packet of kind {packet.kind}")
        vm.note(worker.link, packet.number)

    def _move_apart(self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm) -> None:
        del worker.vms[vm.number]
        vm.left()
        self._taking_over[vm.number] = time.monotonic()
        if not self._stops and self._lasts(vm):
            self._begin_session(vm)

    async def _reply(
        self, worker: WorkerProcess | FormerWorker, vm: SupervisedVm, reply: bytes, fds: tuple[int, ...]
    ) -> None:
        problem = await vm.send_reply(reply, fds)
        worker.send(Packet(Kind.SENT, vm.number, problem.encode()))

    def _forget(self, number: int) -> None:
        vm = self._vms.pop(number)
        next_one = self._sessions.forget(vm)
        vm.close()
        self._taking_over.pop(number, None)
        self._complained.discard(number)
        self._commands.forget(number)
        self.notices.forget(number)
        if not self._vms:
            self._none_left.set()
        if next_one is not None:
            asyncio.get_running_loop().call_soon(self._begin_session, next_one)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- workers that end -------------------------------------------------------------------------------------------

    def _on_gone(self, worker: WorkerProcess, how: str) -> None:
        self._workers.pop(worker.number, None)
        if self._stops and not self._workers:
            self._all_ended.set()
        if self._stops or (worker.alone and not worker.vms):
            return
        vms = sorted(worker.vms)
        self._events.emit("worker_ended", worker=worker.number, pid=worker.pid, reason=how, vms=vms)
        for vm in worker.vms.values():
            vm.worker_ended(worker.gone_at, worker.began)
            self._taking_over.setdefault(vm.number, worker.gone_at)
        ends = ends_at_start(worker)
        if not (wait := back_off(ends)):
            names = ", ".join(map(str, vms)) or "none"
            often = max((vm.ends_in_a_row for vm in worker.vms.values()), default=1) > ENDS_FREE
            level = logging.INFO if often else logging.WARNING  # a few lines; the events have all
            log.log(level, "worker %d has ended (%s); vm %s: another one goes on", worker.number, how, names)
            self._replace(worker)
            return
        if ends == ENDS_FREE + 1 and not self._complained & set(vms):
            self._complained |= set(vms)
            log.warning("worker %d ends at its start (%s): the next one waits, longer each time", worker.number, how)
        asyncio.get_running_loop().call_later(wait, self._replace, worker)

    def _replace(self, ended: WorkerProcess) -> None:
        if self._stops or (ended.alone and not ended.vms):
            return
        vms = [vm for vm in ended.vms.values() if vm.number in self._vms and self._lasts(vm)]
        try:
            worker = self._start_worker(ended.number, alone=ended.alone)
        except BalloonError as error:
            for vm in vms:
                self._on_no_worker(vm, error)
            ended.vms.clear()
            asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._replace, ended)
            return
        worker.early_ends = 0 if vms else ends_at_start(ended)
        self._status.worker_restarts += 1
        # Machines whose workers end again and again are parted: the one that is at fault takes no other with it.
        parts = len(vms) > 1 and max(vm.quick_ends for vm in vms) >= ENDS_FREE
        for vm in vms:
            if parts and worker.vms:
                self._begin_session(vm, parted=True)
            else:
                self._watch.serve(worker, vm)

    def _lasts(self, vm: SupervisedVm) -> bool:
        # Ends the session of a machine that cannot go on.
        if not vm.lasts:
            why = "its session ends with its worker, descriptors of it found no room here"
            log.error("vm %d: %s", vm.number, why)
            self._events.emit("disconnected", vm=vm.number, reason=why)
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
        self._watch.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        for former in self._former:
            former.close()
        for worker in list(self._workers.values()):
            stop(worker)
        if self._workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_PATIENCE):
                    await self._all_ended.wait()
        for worker in list(self._workers.values()):
            worker.kill()
        for worker in list(self._workers.values()):
            worker.wait(0.02)  # one that a front-end holds up ends when that one pleases
        if self._relay is not None:
            self._relay.close()
        self._zygote.close()
