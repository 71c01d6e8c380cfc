"""The supervisor: it has virtual machines served by worker processes, and goes on without those that die.

It keeps of each machine what another worker needs (:mod:`host.supervision.supervised_vm`), and knows nothing of what
that means: it maps no guest memory, parses no ring and reads no descriptor of a front-end.
"""

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.control.control_commands import ControlCommands
from host.control.daemon_status import DaemonStatus
from host.peers.peers import SESSIONS_MAX, shared_descriptors
from host.qmp.qmp import ErrorClass, QmpError, Request
from host.supervision.machines import Notices, Unnoticed
from host.supervision.packets import Kind, Packet
from host.supervision.process_sessions import Admission, ProcessSessions
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import WorkerGone, WorkerProcess, ZygoteGone
from host.supervision.zygote import Zygote, restart_zygote
from protocol.errors import BalloonError
from protocol.process.events import EventLog

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

ANSWER_PATIENCE: Final = 1.0
"""Seconds that one worker has to answer a question to all of them."""

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether each worker answers."""

CHECKS_MISSED: Final = 2
"""Looks in a row at which a worker had not answered, after which it is killed. They are counted, and not seconds: when
all processes have been stopped and go on, nothing is said of a worker yet."""

WAITING_MAX: Final = 16 * SESSIONS_MAX
"""Connections of one process that may wait for sessions of it to be released, a few thousand that come and go."""

STOP_PATIENCE: Final = 0.5
"""Seconds that the workers have to end."""

_OF_ALL: Final = frozenset({"query-commands", "query-status", "query-version", "set-log-level"})
"""Commands that concern no virtual machine."""


class Supervisor:
    """Serves virtual machines in ``pool`` worker processes, or in one for each if ``pool`` is 0."""

    def __init__(
        self, zygote: Zygote, pool: int, events: EventLog, version: Mapping[str, Any], status: DaemonStatus
    ) -> None:
        self.notices: Notices = Unnoticed()
        self._zygote = zygote
        self._pool = pool
        self._events = events
        self._local = ControlCommands({}, time.time, version, status)
        self._status = status
        self._vms: dict[int, SupervisedVm] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._taking_over: dict[int, float] = {}
        self._complained: set[int] = set()
        self._sessions = ProcessSessions(SESSIONS_MAX, min(WAITING_MAX, shared_descriptors() // 4))
        self._last_number = 0
        self._last_entries: dict[int, dict[str, Any]] = {}
        self._checking: asyncio.TimerHandle | None = None
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
        self._check_workers()

    def _check_workers(self) -> None:
        self._checking = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check_workers)
        for worker in self._workers.values():
            if worker.vms and not worker.gone and worker.check() == CHECKS_MISSED:
                seconds = CHECK_INTERVAL * CHECKS_MISSED
                log.warning("worker %d has not answered for %.0f s and is killed", worker.number, seconds)
                worker.kill()

    def _start_worker(self, number: int | None = None, *, alone: bool = False) -> WorkerProcess:
        if number is None:
            self._last_number += 1
            number = self._last_number
        try:
            worker = WorkerProcess(number, self._zygote, self._on_packet, self._on_gone)
        except ZygoteGone as error:
            log.warning("%s; it is started again", error)
            self._zygote.close()
            self._zygote.reap()
            self._zygote = restart_zygote()
            worker = WorkerProcess(number, self._zygote, self._on_packet, self._on_gone)
        worker.set_log_level(self._status.log_level)
        if alone or not self._pool:
            worker.be_alone()
        self._workers[number] = worker
        return worker

    def serve(self, vm: int, sock: socket.socket, *, device: DeviceOptions = DEFAULT_DEVICE) -> None:
        """Have the virtual machine at the other end of ``sock`` served, with this ``device``."""
        record = SupervisedVm(vm, sock, device)
        admission = self._sessions.admit(record)
        if admission is Admission.REFUSED:
            record.close()
            return
        self._vms[vm] = record
        self._none_left.clear()
        if admission is Admission.BEGINS:
            self._begin_session(record)

    def _begin_session(self, vm: SupervisedVm) -> None:
        if self._stops:
            return
        try:
            worker = self._idlest() if self._pool else self._start_worker()
        except BalloonError as error:
            log.warning("vm %d: %s", vm.number, error)
            self._forget(vm.number)
            return
        worker.serve(vm)

    def _idlest(self) -> WorkerProcess:
        alive = [worker for worker in self._workers.values() if not worker.gone and not worker.alone]
        return min(alive, key=lambda worker: (len(worker.vms), worker.number)) if alive else self._start_worker()

    # -- what workers say -------------------------------------------------------------------------------------------

    def _on_packet(self, worker: WorkerProcess, packet: Packet) -> None:
        match packet.kind:
            case Kind.EVENTS:
                self._events.pass_on(packet.body.decode())
            case Kind.NOTICE:
                self._notice(*json.loads(packet.body))
            case _:
                vm = self._vms.get(packet.vm)
                if vm is not None:
                    self._on_session(worker, vm, packet)

    def _on_session(self, worker: WorkerProcess, vm: SupervisedVm, packet: Packet) -> None:
        vm.is_served = True
        match packet.kind:
            case Kind.PIECE:
                vm.came(packet)
            case Kind.TAKEN:
                vm.taken()
            case Kind.RECORD:
                vm.record(packet)
            case Kind.HANDLED:
                if reply := vm.handled(packet):
                    self._begin(self._reply(worker, vm, reply, packet.fds))
            case Kind.JOURNAL:
                vm.changed(packet)
                self._tell_taken_over(worker, vm)
            case Kind.ENDED:
                worker.vms.pop(vm.number, None)
                self._forget(vm.number)
                if worker.alone and not worker.vms:
                    worker.send(Packet(Kind.STOP))
            case Kind.LEFT:
                self._move_apart(worker, vm)
            case _:
                log.error("worker %d: a packet of kind %d", worker.number, packet.kind)

    def _move_apart(self, worker: WorkerProcess, vm: SupervisedVm) -> None:
        # Its memory can be cut short.
        del worker.vms[vm.number]
        vm.is_served = False
        self._taking_over[vm.number] = time.monotonic()
        if not vm.lasts:
            log.error("vm %d: its session ends, descriptors of it found no room here", vm.number)
        if self._stops or not vm.lasts:
            self._forget(vm.number)
            return
        try:
            self._start_worker(alone=True).serve(vm)
        except BalloonError as error:
            log.warning("vm %d: %s", vm.number, error)
            self._forget(vm.number)

    async def _reply(self, worker: WorkerProcess, vm: SupervisedVm, reply: bytes, fds: tuple[int, ...]) -> None:
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
        self._last_entries.pop(number, None)
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
            if vm.number in self._vms and not vm.lasts:
                log.error("vm %d: its session ends with its worker, descriptors of it found no room here", vm.number)
                self._forget(vm.number)
            elif vm.number in self._vms:
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

    def _tell_taken_over(self, worker: WorkerProcess, vm: SupervisedVm) -> None:
        since = self._taking_over.pop(vm.number, None)
        if since is not None:
            seconds = round(time.monotonic() - since, 6)
            self._events.emit("taken_over", vm=vm.number, worker=worker.number, pid=worker.pid, seconds=seconds)

    # -- commands ---------------------------------------------------------------------------------------------------

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""
        try:
            if request.name == "query-vms" and not request.arguments.members:
                return request.success(await self._query_vms())
            if request.name == "query-status" and not request.arguments.members:
                return request.success(self._status.describe(len(self._vms)))
            vm = self._vm_of(request)
            if vm is None:
                if request.name == "set-log-level":
                    arguments = dict(request.arguments.members)
                    await self._ask_all(lambda worker: worker.command("set-log-level", arguments, {}))
                return await self._local.perform(request)
            return await self._worker_of(vm).command(request.name, self._with_vm(request, vm), dict(request.reply))
        except QmpError as error:
            return request.failure(error)
        except WorkerGone as error:
            return request.failure(QmpError(f"{error} before it has answered"))

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns."""
        match name:
            case "query-vms":
                return await self._query_vms()
            case "query-status":
                return self._status.describe(len(self._vms))
            case _:
                return await self._local.query(name)

    def _vm_of(self, request: Request) -> int | None:
        # The machine that a command is about. None: this process answers, be it with an error.
        members = request.arguments.members
        if request.name.startswith("qom-"):
            name = str(members.get("path", "")).rstrip("/").rpartition("/")[2].removeprefix("vm")
            number = int(name) if name.isascii() and name.isdecimal() and len(name) < 20 else None
        elif "vm" in members:
            number = members["vm"] if type(members["vm"]) is int else None
        elif request.name in _OF_ALL or not self._local.has(request.name):
            number = None
        elif len(self._vms) > 1:
            raise QmpError(f"parameter 'vm' is missing: {len(self._vms)} virtual machines are connected")
        else:
            number = next(iter(self._vms), None)
        return number if number in self._vms else None

    @staticmethod
    def _with_vm(request: Request, vm: int) -> dict[str, Any]:
        members = dict(request.arguments.members)
        return members if request.name.startswith("qom-") else members | {"vm": vm}

    def _worker_of(self, vm: int) -> WorkerProcess:
        for worker in self._workers.values():
            if vm in worker.vms and not worker.gone:
                return worker
        raise QmpError(f"vm {vm} has no worker at present", ErrorClass.DEVICE_NOT_ACTIVE)

    async def _query_vms(self) -> list[dict[str, Any]]:
        answers = await self._ask_all(lambda worker: worker.command("query-vms", {}, {}))
        found = {entry["vm"]: entry for answer in answers for entry in json.loads(answer)["return"]}
        found = {vm: entry for vm, entry in found.items() if vm in self._vms}
        self._last_entries.update(found)
        for vm, record in self._vms.items():
            if self._sessions.waits(record):
                continue  # it has not begun
            # Counters that went for a moment would look like a new machine.
            found.setdefault(vm, {"vm": vm, **self._last_entries.get(vm, {}), "broken": "its worker does not answer"})
        return [found[vm] for vm in sorted(found)]

    async def _ask_all(self, ask: Any) -> list[bytes]:
        async def answer(worker: WorkerProcess) -> bytes | None:
            with contextlib.suppress(TimeoutError, WorkerGone):
                async with asyncio.timeout(ANSWER_PATIENCE):
                    answer: bytes = await ask(worker)
                    return answer
            return None

        workers = [worker for worker in self._workers.values() if worker.vms and not worker.gone]
        answers = await asyncio.gather(*map(answer, workers))
        return [answer for answer in answers if answer is not None]

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people."""
        answers = await self._ask_all(lambda worker: worker.ask(Kind.STATUS))
        return sorted((line for answer in answers for line in json.loads(answer)), key=_number_in)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def all_gone(self) -> None:
        """Return when no virtual machine is served."""
        if self._vms:
            await self._none_left.wait()

    async def finish(self) -> None:
        """End every session, and serve no more."""
        self._stops = True
        if self._checking is not None:
            self._checking.cancel()
        for worker in self._workers.values():
            worker.send(Packet(Kind.STOP))
        if self._workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_PATIENCE):
                    await self._all_ended.wait()
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            worker.reap(tries=20)  # one that a front-end holds up ends when that one pleases
        self._zygote.close()
        for vm in list(self._vms):
            self._forget(vm)


def _number_in(line: str) -> int:
    return int(line.split()[1])
