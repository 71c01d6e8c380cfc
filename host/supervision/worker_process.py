"""A worker as the supervisor sees it."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection
from typing import Final

from host.service_manager.service_manager import UNMANAGED, ServiceManager
from host.supervision.link import Link, make_pair
from host.supervision.packets import Kind, Packet, split_number, with_number
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.zygote import Zygote
from protocol.errors import BalloonError

log = logging.getLogger(__name__)

REAP_TRIES = 200
"""Times, a millisecond apart, that a worker whose end of the way was closed is looked at until it has ended."""

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at whether each worker answers."""

CHECKS_MISSED: Final = 2
"""Looks in a row at which a worker had not answered, after which it is killed. They are counted, and not seconds: when
all processes have been stopped and go on, nothing is said of a worker yet."""

PATIENCE: Final = CHECK_INTERVAL * CHECKS_MISSED


class ZygoteGone(BalloonError):
    """A worker cannot be forked."""


class WorkerGone(BalloonError):
    """The worker has ended before it has answered."""


class WorkerProcess:
    """Worker ``number``, forked by ``zygote``. ``on_packet`` is called with what it says but for answers, ``on_gone``
    when it has ended."""

    def __init__(
        self,
        number: int,
        zygote: Zygote,
        on_packet: Callable[["WorkerProcess", Packet], None],
        on_gone: Callable[["WorkerProcess"], None],
        manager: ServiceManager = UNMANAGED,
    ) -> None:
        """Have it forked. What is sent to it meanwhile waits for it. ``manager`` keeps the way to it."""
        self.number = number
        self.link = f"worker{number}.{secrets.token_hex(4)}"
        self.vms: dict[int, SupervisedVm] = {}
        self.pid = 0
        self.began: float | None = None
        """When it said that it runs, monotonic seconds."""
        self.gone = False
        self.alone = False
        """Whether it has one machine alone."""
        self._on_packet = on_packet
        self._on_gone = on_gone
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._parts: dict[int, bytes] = {}
        """What has come of answers that have several packets, by question."""
        self._last_question = 0
        self._pinged: asyncio.Future[bytes] | None = None
        self._silent_for = 0
        ours, theirs = make_pair()
        self._manager = manager
        manager.store(self.link, ours.fileno())
        self._link = Link(ours, self._receive, self._end, keeps=manager.keeps)
        with theirs:
            if not zygote.fork(number, theirs):
                self._link.close()
                manager.remove(self.link)
                raise ZygoteGone("no worker can be forked: the process that does so has ended")

    def be_alone(self) -> None:
        """Have it serve one machine alone."""
        self.alone = True
        self._link.send(Packet(Kind.ALONE))

    def send(self, packet: Packet) -> None:
        """Send a packet."""
        self._link.send(packet)

    def serve(self, vm: SupervisedVm) -> None:
        """Have it serve a virtual machine: from the beginning, or from where another worker has ended."""
        self.vms[vm.number] = vm
        vm.is_with(self.link)
        for packet in vm.hand_over():
            self._link.send(packet)

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
            self._link.send(Packet(kind, 0, with_number(number, body)))
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
        self._link.send(Packet(Kind.COMMAND, 0, with_number(0, body)))

    def check(self) -> int:
        """Return in how many calls, this one included, it has not answered since the one before, and have it answer
        until the next."""
        if self._pinged is not None and not self._pinged.done():
            self._silent_for += 1
            return self._silent_for
        self._silent_for = 0
        self._last_question += 1
        number = self._last_question
        self._pinged = self._questions[number] = asyncio.get_running_loop().create_future()
        self._pinged.add_done_callback(lambda _: self._questions.pop(number, None))
        self._link.send(Packet(Kind.PING, 0, with_number(number, b"")))
        return 0

    def _receive(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.HELLO:
                self.pid, _ = split_number(packet.body)
                self.began = time.monotonic()
            case Kind.PART | Kind.ANSWER:
                number, body = split_number(packet.body)
                if (answer := self._questions.get(number)) is None or answer.done():
                    return
                body = self._parts.pop(number, b"") + body
                if packet.kind is Kind.PART:
                    self._parts[number] = body
                else:
                    answer.set_result(body)
            case _:
                self._on_packet(self, packet)

    def _end(self) -> None:
        self.gone = True
        if self._pinged is not None:
            self._pinged.cancel()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(WorkerGone("the worker has ended"))
        self._manager.remove(self.link)  # no packet is left on it
        self._on_gone(self)

    def kill(self) -> None:
        """Kill it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def reap(self, tries: int = REAP_TRIES) -> str:
        """Return how the process has ended; it is looked at so often, a millisecond apart."""
        if not self.pid:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            return "it could not be started"
        self.kill()  # it has closed its end: if it is not about to end it is of no more use
        for _ in range(tries):
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return "it has ended"
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return f"exit status {code}" if code >= 0 else signal.Signals(-code).name
            time.sleep(0.001)
        return "it does not end"


class AnswerCheck:
    """Looks at workers, every :data:`CHECK_INTERVAL` seconds."""

    def __init__(self) -> None:
        self._not_begun: set[str] = set()
        self._looks = 0

    def look(self, workers: Collection[WorkerProcess]) -> bool:
        """Kill each worker that has machines and did not answer. Return whether none begins of those that were to be
        forked. One that has not begun does not answer: on a host whose machines all start it waits for its turn."""
        for worker in workers:
            if worker.pid and worker.vms and not worker.gone and worker.check() == CHECKS_MISSED:
                log.warning("worker %d has not answered for %.0f s and is killed", worker.number, PATIENCE)
                worker.kill()
        not_begun = {worker.link for worker in workers if not worker.pid and not worker.gone}
        self._looks = self._looks + 1 if self._not_begun and self._not_begun <= not_begun else 0
        self._not_begun = not_begun
        return self._looks == CHECKS_MISSED
