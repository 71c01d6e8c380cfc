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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from host.configuration.device_options import DeviceOptions
from host.configuration.vm_listeners import VmListeners
from host.configuration.vm_socket import VmSocket
from host.control.control_server import ControlServer
from host.control.daemon_status import DaemonStatus, daemon_line
from host.daemon_options import DaemonOptions
from host.metrics.metrics_server import open_metrics
from host.service_manager.listeners import Listeners
from host.service_manager.notification import READY, STOPPING, main_process, reloading, status
from host.service_manager.service_manager import UNMANAGED, ServiceManager
from host.signals import STOP_SIGNALS, SignalThread
from host.supervision.machines import Machines
from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop
from protocol.process.command_line import DISTRIBUTION
from protocol.process.events import EventLog
from protocol.process.listening_socket import inherited_socket

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
            self._inherited = None if options.fd is None else inherited_socket(options.fd)
            self._vm_listeners = VmListeners(options.sockets, self._listeners.listen_at)
            sockets.callback(self._vm_listeners.close)
            self._control = self._open_control(sockets, version)
            self._metrics = open_metrics(options.metrics, machines.query, sockets)
            if machines.outlives:
                self._listeners.keep()
            self._listeners.close_others()
            self._sockets = sockets.pop_all()
        self._events = events
        self._facts = status
        status.sockets = self._describe_sockets
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
        listener = self._listeners.listen_at(path, "--control", access)
        sockets.callback(listener.close)
        self._machines.notices = control = ControlServer(listener, self._machines.perform, version)
        return control

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the virtual machine of a connected ``--fd`` has gone and there is no
        socket for another one."""
        loop = asyncio.get_running_loop()
        others = {signal.SIGHUP: self._hang_up, signal.SIGUSR1: self._print_status, signal.SIGUSR2: self._let_go}
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
            await self._accept()
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

    async def _accept(self) -> None:
        self._vm_listeners.start(self._serve)
        for each in self._vm_listeners.sockets:
            self._tell_listening(str(each.path), each.device.name)
        if self._inherited is None:
            self._tell_ready(self._sockets_line())
            await self._stop.wait()
            return
        sock, listens = self._inherited
        if listens:
            await self._listen(sock)
            return
        self._serve(self._options.device, sock)
        self._tell_ready("serving one connection")
        if self._vm_listeners.sockets:
            await self._stop.wait()
            return
        ends = [asyncio.ensure_future(self._machines.all_gone()), asyncio.ensure_future(self._stop.wait())]
        await asyncio.wait(ends, return_when="FIRST_COMPLETED")

    async def _listen(self, sock: socket.socket) -> None:
        accepting = AcceptLoop(sock, "a virtual machine", partial(self._serve, self._options.device))
        accepting.start()
        self._tell_listening(_printable_address(sock), "")
        self._tell_ready(self._sockets_line())
        try:
            await self._stop.wait()
        finally:
            accepting.stop()
            sock.close()

    def _tell_listening(self, address: str, name: str) -> None:
        named = {"name": name} if name else {}
        self._events.emit("listening", socket_path=address, pid=os.getpid(), **named)
        log.info("listening on %s", address)

    def _serve(self, device: DeviceOptions, sock: socket.socket) -> None:
        self._facts.sessions += 1
        self._machines.serve(self._facts.sessions, sock, device=device)

    def _describe_sockets(self) -> list[dict[str, str | None]]:
        return [{"path": path, "name": name or None} for path, name in self._addresses()]

    def _addresses(self) -> list[tuple[str, str]]:
        # What guests connect to, and the name that they have there.
        addresses = [(str(each.path), each.device.name) for each in self._vm_listeners.sockets]
        if self._inherited is not None and self._inherited[1] and self._inherited[0].fileno() >= 0:
            addresses.append((_printable_address(self._inherited[0]), ""))
        return addresses

    def _sockets_line(self) -> str:
        addresses = self._addresses()
        return f"listening on {addresses[0][0] if len(addresses) == 1 else f'{len(addresses)} sockets'}"

    def _hang_up(self) -> None:
        if self._stop.is_set():
            return
        self._manager.tell(reloading(time.monotonic_ns() // 1000))
        self._events.reopen()
        if self._options.reload is not None:
            self._change_sockets(self._options.reload)
        self._manager.tell(READY)

    def _change_sockets(self, read: Callable[[], Sequence[VmSocket]]) -> None:
        try:
            added, removed, changed = self._vm_listeners.change(read())
        except BalloonError as error:
            lines = str(error).split("\n")
            for line in lines:
                log.error("%s", line)
            self._events.emit("reload_refused", mistakes=lines)
            return
        for each in added:
            self._tell_listening(str(each.path), each.device.name)
        names = {
            which: [str(each.path) for each in some]
            for which, some in (("added", added), ("removed", removed), ("changed", changed))
        }
        self._events.emit("reloaded", **names)
        log.info("reloaded: %s", ", ".join(f"{len(paths)} {which}" for which, paths in names.items()))
        self._manager.tell(status(self._sockets_line()))

    async def _finish(self) -> None:
        self._stop.set()
        self._vm_listeners.stop()
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
