"""A worker as the supervisor sees it."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

from host.descriptors.closing import Closer
from host.service_manager.service_manager import UNMANAGED, ServiceManager
from host.supervision.link import Link, make_pair
from host.supervision.packets import Kind, Packet, PacketError, split_number, with_number
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.zygote import Zygote
from protocol.errors import BalloonError
from protocol.process.exit_status import how_ended

log = logging.getLogger(__name__)

END_PATIENCE: Final = 5.0
"""Seconds that a worker which was killed has to end before another one has its machines. It may be in the middle of a
discard, which goes on to its end in the kernel: what the guest is given back before that could be lost."""

_LOOK_INTERVAL: Final = 0.001
"""Seconds between two looks at whether it has ended, where the kernel does not tell."""

ANSWER_MAX: Final = 64 << 20
"""Most bytes of an answer."""


class ZygoteGone(BalloonError):
    """A worker cannot be forked."""


class NoWay(BalloonError):
    """There is no way to a worker."""


class WorkerGone(BalloonError):
    """The worker has ended before it has answered."""


class WorkerProcess:
    """Worker ``number``, forked by ``zygote``. ``on_packet`` is called with what it says but for answers, ``on_gone``
    when it has ended, with how."""

    def __init__(
        self,
        number: int,
        zygote: Zygote,
        on_packet: Callable[["WorkerProcess", Packet], None],
        on_gone: Callable[["WorkerProcess", str], None],
        manager: ServiceManager = UNMANAGED,
    ) -> None:
        """Have it forked. What is sent to it meanwhile waits for it. ``manager`` keeps the way to it."""
        self.number = number
        self.link = f"worker{number}.{secrets.token_hex(4)}"
        self.vms: dict[int, SupervisedVm] = {}
        self.pid = 0
        self.began: float | None = None
        """When it said that it runs, monotonic seconds."""
        self.early_ends = 0
        """How many with this number have ended at their start before it, in a row, without a machine."""
        self.gone_at = 0.0
        """When it was found to do nothing more, 0 before."""
        self._has_ended = False
        self._process: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._recorded: set[int] | None = None
        self.alone = False
        """Whether it has one machine alone."""
        self.is_awake = True
        """Whether it may have done something, or be about to, since it answered a check."""
        self.on_awake: Callable[[bool], None] = lambda _first: None
        """Called when it is, and whether it was not before."""
        self._on_packet = on_packet
        self._on_gone = on_gone
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._parts: dict[int, bytes] = {}
        """What has come of answers that have several packets, by question."""
        self._last_question = 0
        self._pinged: asyncio.Future[bytes] | None = None
        self._silent_for = 0
        self._closer = Closer()
        try:
            ours, theirs = make_pair()
        except OSError as error:  # no descriptor is left
            raise NoWay(f"no worker can be started: {error.strerror}") from error
        self._manager = manager
        manager.store(self.link, ours.fileno())
        self._link = Link(ours, self._receive, self._end, keeps=manager.keeps, on_bad=self._on_bad)
        with theirs:
            if not zygote.fork(number, theirs):
                self._link.close()
                manager.remove(self.link)
                raise ZygoteGone("no worker can be forked: the process that does so has ended")

    @property
    def gone(self) -> bool:
        """Whether it does nothing more."""
        return bool(self.gone_at)

    def record_to(self, open_pipe: Callable[[set[int]], int]) -> None:
        """Have it record. ``open_pipe`` is called with its sessions, which grow, and returns where to."""
        self._recorded = set()
        try:
            pipe = open_pipe(self._recorded)
        except OSError as error:  # no descriptor is left
            log.warning("worker %d does not record: %s", self.number, error.strerror)
            return
        self._link.send(Packet(Kind.RECORDING, fds=(pipe,)))
        os.close(pipe)

    def be_alone(self) -> None:
        """Have it serve one machine alone."""
        self.alone = True
        self.send(Packet(Kind.ALONE))

    def close_files(self, fds: Iterable[int]) -> None:
        """Close descriptors that came from it and belong to no machine of its."""
        self._closer.close(fds)

    def send(self, packet: Packet) -> None:
        """Send a packet."""
        self.wake()
        self._link.send(packet)

    def wake(self) -> None:
        """Take note that it does something, or may not be able to."""
        first, self.is_awake = not self.is_awake, True
        self.on_awake(first)

    def serve(self, vm: SupervisedVm) -> None:
        """Have it serve a virtual machine: from the beginning, or from where another worker has ended."""
        self.vms[vm.number] = vm
        if self._recorded is not None:
            self._recorded.add(vm.number)
        vm.is_with(self.link)
        for packet in vm.hand_over():
            self.send(packet)

    async def ask(self, kind: Kind, body: bytes = b"") -> bytes:
        """Return the answer to a question.

        Raises:
            WorkerGone: it has ended.
        """
        if self.gone:
            raise WorkerGone("the worker has ended")
        self._last_question += 1
        number = self._last_question
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(Packet(kind, 0, with_number(number, body)))
            told: bytes = await answer
            return told
        finally:
            self._questions.pop(number, None)
            self._parts.pop(number, None)

    async def command(self, name: str, arguments: object, reply: object) -> bytes:
        """Return the answer to a command of a control client. Raises :class:`WorkerGone`."""
        return await self.ask(Kind.COMMAND, json.dumps([name, arguments, reply]).encode())

    def set_log_level(self, level: str) -> None:
        """Have it log from ``level`` on, without an answer."""
        body = json.dumps(["set-log-level", {"level": level}, {}]).encode()
        self.send(Packet(Kind.COMMAND, 0, with_number(0, body)))

    @property
    def _is_asked(self) -> bool:
        return self._pinged is not None and not self._pinged.done()

    @property
    def is_to_check(self) -> bool:
        """Whether it has machines, and may not answer any more."""
        return self.began is not None and bool(self.vms) and not self.gone and (self.is_awake or self._is_asked)

    @property
    def is_to_begin(self) -> bool:
        """Whether it has been forked, or is to be, and has not said so yet."""
        return self.began is None and not self.gone

    def check(self) -> int:
        """Return in how many calls, this one included, it has not answered since the one before, and have it answer
        until the next."""
        if self._is_asked:
            self._silent_for += 1
            return self._silent_for
        self._silent_for = 0
        self._last_question += 1
        number = self._last_question
        self._pinged = self._questions[number] = asyncio.get_running_loop().create_future()
        self._pinged.add_done_callback(lambda _: self._questions.pop(number, None))
        self.is_awake = False
        self._link.send(Packet(Kind.PING, 0, with_number(number, b"")))
        return 0

    def _receive(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.HELLO:
                if self.began is not None:
                    raise PacketError("it says again which process it is")
                pid, _ = split_number(packet.body)
                if not _is_child(pid):
                    raise PacketError(f"process {pid} is no worker")
                self.pid, self.began = pid, time.monotonic()
                self._watch()
            case Kind.PART | Kind.ANSWER:
                number, body = split_number(packet.body)
                if (answer := self._questions.get(number)) is None or answer.done():
                    return
                body = self._parts.pop(number, b"") + body
                if len(body) > ANSWER_MAX:
                    raise PacketError("an answer without an end")
                if packet.kind is Kind.PART:
                    self._parts[number] = body
                else:
                    answer.set_result(body)
            case Kind.AWAKE:
                self.wake()
            case _:
                self._on_packet(self, packet)

    def _on_bad(self, error: PacketError, fds: tuple[int, ...]) -> None:
        log.error("worker %d is at fault and is killed: %s", self.number, error)
        self._closer.close(fds)
        self._link.close()
        self._end()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        # The way to it tells of its end too, but not while another process has its end of that.
        with contextlib.suppress(OSError):
            self._process = os.pidfd_open(self.pid)
            asyncio.get_running_loop().add_reader(self._process, self._on_process_ended)

    def _on_process_ended(self) -> None:
        self._link.take_all()
        self._end()

    def _end(self) -> None:
        if not self.gone_at:
            self._be_gone()
            self.kill()  # it has closed its end: if it is not about to end it is of no more use
        if self._has_ended or (how := self._look()) is None:
            return
        self._has_ended = True
        self._forget_process()
        self._on_gone(self, how)

    def _be_gone(self) -> None:
        self.gone_at = time.monotonic()
        self._link.close()
        if self._pinged is not None:
            self._pinged.cancel()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(WorkerGone("the worker has ended"))
        self._manager.remove(self.link)  # no packet is left on it

    def _look(self) -> str | None:
        # Returns how the process has ended, None if it is looked at again.
        if (how := self.reap()) is not None:
            return how
        left = self.gone_at + END_PATIENCE - time.monotonic()
        if left <= 0:
            return "it does not end"
        if self._timer is not None:
            self._timer.cancel()
        wait = _LOOK_INTERVAL if self._process is None else left
        self._timer = asyncio.get_running_loop().call_later(wait, self._end)
        return None

    def _forget_process(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            asyncio.get_running_loop().remove_reader(self._process)
            os.close(self._process)
            self._process = None

    def kill(self) -> None:
        """Kill it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> str | None:
        """Return how the process has ended, None if it has not."""
        if not self.pid:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            return "it could not be started"
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return "it has ended"
        if not pid:
            return None
        return how_ended(status)

    def wait(self, seconds: float) -> None:
        """Kill it, and wait for its end so long."""
        self.kill()
        until = time.monotonic() + seconds
        while self.reap() is None and time.monotonic() < until:
            time.sleep(_LOOK_INTERVAL)


def _is_child(pid: int) -> bool:
    # Only these are killed. That a worker ends at once changes nothing: it was not waited for.
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, OverflowError):
        return False
    return pid > 0
