"""The daemon: one listening socket (or one connected one), many virtual machines that do not delay each other."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from host.control.control_server import ControlServer
from host.control.daemon_status import DaemonStatus
from host.control.status import daemon_line
from host.daemon_options import DaemonOptions
from host.metrics.metrics_server import open_metrics
from host.service_manager.listeners import Listeners
from host.service_manager.notification import READY, STOPPING, main_process, reloading, status
from host.service_manager.service_manager import UNMANAGED, ServiceManager
from host.signals import STOP_SIGNALS, SignalThread
from host.supervision.machines import Machines
from protocol.process.accept_loop import AcceptLoop
from protocol.process.command_line import DISTRIBUTION
from protocol.process.events import EventLog

log = logging.getLogger(__name__)


class Daemon:
    """Accepts virtual machines and has each served until it goes away."""

    def __init__(
        self,
        options: DaemonOptions,
        events: EventLog,
        machines: Machines,
        version: Mapping[str, Any],
        status: DaemonStatus,
        manager: ServiceManager = UNMANAGED,
        listeners: Listeners | None = None,
    ) -> None:
        """Open the sockets. No event loop may run yet: a mistyped ``--fd`` could name one of its own sockets.

        ``machines`` serves the virtual machines, ``version`` is what clients of the control socket are greeted with,
        ``status`` what they are told of the daemon. ``manager`` is told what the daemon does, ``listeners`` open
        its sockets.

        Raises:
            BalloonError: a socket cannot be opened.
        """
        self._options = options
        self._machines = machines
        self._manager = manager
        self._listeners = Listeners() if listeners is None else listeners
        self._lets_go = False
        with contextlib.ExitStack() as sockets:
            self._socket, self._listens = self._listeners.open_socket(
                options.socket_path, options.fd, options.socket_access, sockets
            )
            self._control = self._open_control(sockets, version)
            self._metrics = open_metrics(options.metrics, machines.perform, sockets)
            if machines.outlives:
                self._listeners.keep()
            self._sockets = sockets.pop_all()
        self._events = events
        self._facts = status
        self.on_overdue: Callable[[], None] = _wait_longer
        """Called on a thread of its own when the end of all sessions takes too long after a signal. :meth:`close` may
        be called there."""
        self._closing = threading.Lock()
        self._stop = asyncio.Event()
        self._status: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Remove the sockets that were made here, also if :meth:`run` was never called."""
        with self._closing:
            self._sockets.close()

    def _open_control(self, sockets: contextlib.ExitStack, version: Mapping[str, Any]) -> ControlServer | None:
        if self._options.control_path is None:
            return None
        path, access = self._options.control_path, self._options.control_access
        listener = self._listeners.listen_at(path, "--control", access, sockets)
        self._machines.notices = control = ControlServer(listener, self._machines.perform, version)
        return control

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the one virtual machine of a connected ``--fd`` has gone."""
        loop = asyncio.get_running_loop()
        others = {signal.SIGHUP: self._reload, signal.SIGUSR1: self._print_status, signal.SIGUSR2: self._let_go}
        for number in STOP_SIGNALS:  # where they are not blocked
            loop.add_signal_handler(number, self._stop.set)
        for number, action in others.items():
            loop.add_signal_handler(number, action)
        call = loop.call_soon_threadsafe
        signals = SignalThread(
            partial(call, self._stop.set),
            lambda: self.on_overdue(),
            {number: partial(call, action) for number, action in others.items()},
        )
        signals.start()
        try:
            self._machines.start()
            if self._control is not None:
                await self._control.start()
            if self._metrics is not None:
                self._metrics.start()
            if self._listens:
                await self._listen(self._socket)
            else:
                self._serve(self._socket)
                self._tell_ready("serving one connection")
                ends = [asyncio.ensure_future(self._machines.all_gone()), asyncio.ensure_future(self._stop.wait())]
                await asyncio.wait(ends, return_when="FIRST_COMPLETED")
        finally:
            await self._finish()
            signals.close()

    def _let_go(self) -> None:
        # A service manager has sent it to have another process go on. Where that cannot be, it means to stop.
        if self._machines.outlives:
            self._lets_go = True
            self._stop.set()
        elif self._manager.is_there:
            os.kill(os.getpid(), signal.SIGTERM)

    def _reload(self) -> None:
        self._manager.tell(reloading(time.monotonic_ns() // 1000))
        self._events.reopen()
        self._manager.tell(READY)

    def _tell_ready(self, text: str) -> None:
        self._manager.tell({**READY, **main_process(os.getpid()), **status(text)})

    def _print_status(self) -> None:
        if sys.stderr is None:  # closed, and `print` would take standard output, the events'
            return
        if self._status is None or self._status.done():
            self._status = asyncio.create_task(self._tell_status())

    async def _tell_status(self) -> None:
        vms = await self._machines.status()
        facts = self._facts
        first = daemon_line(len(vms), sessions=facts.sessions, uptime=facts.uptime, events=self._events.broken)
        for line in (first, *vms):
            print(f"{DISTRIBUTION}: {line}", file=sys.stderr)

    async def _listen(self, sock: socket.socket) -> None:
        accepting = AcceptLoop(sock, "a virtual machine", self._serve)
        accepting.start()
        address = _printable_address(sock)
        self._events.emit("listening", socket_path=address, pid=os.getpid())
        log.info("listening on %s", address)
        self._tell_ready(f"listening on {address}")
        try:
            await self._stop.wait()
        finally:
            accepting.stop()
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        self._facts.sessions += 1
        self._machines.serve(self._facts.sessions, sock)

    async def _finish(self) -> None:
        self._stop.set()
        if self._lets_go:
            self._listeners.let_go()
        else:
            self._manager.tell(STOPPING)
            self._listeners.forget()
        if self._control is not None:
            await self._control.close()
        if self._metrics is not None:
            await self._metrics.close()
        self.close()  # after the control server, which has the event loop watch its socket
        if self._status is not None:
            self._status.cancel()
        await (self._machines.let_go() if self._lets_go else self._machines.finish())


def _printable_address(sock: socket.socket) -> str:
    # The name of an abstract socket comes as bytes with a leading zero, which people write as @.
    address: str | bytes = sock.getsockname()
    return address if isinstance(address, str) else "@" + address[1:].decode(errors="backslashreplace")


def _wait_longer() -> None:
    pass
