"""The proxy: accepts front-ends, connects each to the back-end, and passes what a fault plan makes of the messages."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop
from protocol.process.events import EventLog
from protocol.process.listening_socket import ListeningSocket
from protocol.process.peer_process import peer_process
from protocol.recording.records import PROXY, Record
from scripts.check.faults.fault_plan import FaultPlan
from scripts.check.faults.proxy_session import ProxySession
from scripts.check.recording.recorder import Recorder
from scripts.check.verdict import TargetError


class Proxy:
    """Listens on ``listener`` for front-ends of the back-end at ``target``.

    ``record`` is given the records of everything that is sent, after the faults; None records nothing.
    """

    def __init__(
        self,
        listener: ListeningSocket,
        target: Path,
        plan: FaultPlan,
        events: EventLog,
        record: Callable[[Record], None] | None = None,
    ) -> None:
        self._listener = listener
        self._target = target
        self._plan = plan
        self._events = events
        self._record = record
        self._sessions = 0
        self._tasks = set[asyncio.Task[None]]()
        self._end: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP.

        Raises:
            TargetError: the back-end could not be reached for the first front-end.
        """
        loop = asyncio.get_running_loop()
        end = self._end = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, _resolve, end)
        accepting = AcceptLoop(self._listener.socket, "a front-end", self._accept)
        accepting.start()
        self._events.emit("listening", path=str(self._listener.path), target=str(self._target), seed=self._plan.seed)
        try:
            await end
        finally:
            accepting.stop()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, front_end: socket.socket) -> None:
        self._sessions += 1
        task = asyncio.get_running_loop().create_task(self._serve(self._sessions, front_end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, front_end: socket.socket) -> None:
        try:
            back_end = await _connect(self._target)
        except BalloonError as error:
            front_end.close()
            if number > 1:
                print(f"session {number}: {error}", file=sys.stderr, flush=True)
            elif self._end is not None and not self._end.done():
                self._end.set_exception(error)
            return
        pid = peer_process(front_end).pid
        self._events.emit("connected", session=number, pid=pid)
        recorder = None if self._record is None else Recorder(self._record, number, PROXY)
        if recorder is not None:
            recorder.begin(pid)
        reason = "the proxy was ended"
        session = ProxySession(number, front_end, back_end, self._plan.session(), self._events, recorder)
        try:
            reason = await session.run()
        finally:
            self._events.emit("disconnected", session=number, reason=reason)
            if recorder is not None:
                recorder.end(reason)


def _resolve(end: "asyncio.Future[None]") -> None:
    if not end.done():
        end.set_result(None)


async def _connect(target: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(target))
        except OSError as error:
            raise TargetError(f"--connect {target}: {error.strerror or error}") from error
        undo.pop_all()
    return sock
