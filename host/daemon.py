"""The daemon: one listening socket (or one connected one), many virtual machines that do not delay each other."""

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from host.balloon.free_page_hinting import COMMAND_ID_FIRST, COMMAND_IDS, FreePageHinting
from host.balloon.offered_features import feature_names
from host.balloon.personality import OURS, Personality
from host.balloon.virtio_balloon import VirtioBalloon
from host.connection import Connection, unreleased_sessions
from host.control.control_commands import ControlCommands
from host.control.control_server import ControlServer
from host.control.daemon_status import DaemonStatus
from host.control.guest_ram import RESERVE_BYTES
from host.control.status import status_lines
from host.control.vm_control import VmControl
from host.control.vm_facts import logical_size
from host.events.session_events import SessionEvents, SessionLimit
from host.guest_name import guest_name
from host.metrics.address import MetricsAddress
from host.metrics.metrics_server import open_metrics
from host.migration.dirty_log import CAN_LOG
from host.peers.peers import Peers
from host.qmp.qmp import build_version
from host.recording.recorded_session import RecordedSession
from host.recording.session_recording import NOT_RECORDED
from host.signals import STOP_SIGNALS, SignalThread
from host.vhost_user.queue_numbers import AUTO, QueueNumbers
from host.vhost_user.session import OFFERED_PROTOCOL_FEATURES, Session
from protocol.balloon_config import BalloonConfig
from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop
from protocol.process.command_line import DISTRIBUTION, version
from protocol.process.events import EventLog
from protocol.process.listening_socket import BY_UMASK, OWNER_ALONE, ListeningSocket, SocketAccess, inherited_socket
from protocol.process.recording_file import RecordingFile
from protocol.vhost_user import ProtocolFeature
from protocol.virtio import LOG_ALL, feature_mask

log = logging.getLogger(__name__)

WORKERS_MAX: Final = 256
"""Most threads that discard at the same time. They are started on demand. A guest takes at most one for each of its
queues, so guests that are slow on purpose leave enough for the others."""


FD_TABLE: Final = 16384
"""Descriptors for which the kernel's table has place from the start: 128 KiB."""

FDS_LEAST: Final = 256
"""Open files with which two virtual machines of one user have their share, see :mod:`host.peers.peers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """How the daemon was asked to run. Exactly one of ``socket_path`` and ``fd`` is given.

    ``queue_numbers`` is one of :data:`host.vhost_user.queue_numbers.CHOICES`. ``in_band`` offers notifications as
    messages. ``control_path`` is the path of the control socket, None without one. Statistics are requested every
    ``statistics_interval`` seconds, or for 0 only on demand. ``name_from`` says whether a guest has the name of its
    process (``pid``), its ``cgroup`` or the ``socket``. ``guest_memory`` is the memory of each guest in bytes, 0 if
    that is not stated, and ``guest_reserve`` the bytes that its balloon leaves it at least. ``personality`` has the
    habits of the device, apart from its features and queue numbers, which are options of their own.
    """

    socket_path: Path | None
    fd: int | None
    features: int
    discard: bool
    balloon_pages: int
    queue_numbers: str = AUTO
    in_band: bool = False
    control_path: Path | None = None
    statistics_interval: int = 0
    name_from: str = "pid"
    guest_memory: int = 0
    guest_reserve: int = RESERVE_BYTES
    socket_access: SocketAccess = BY_UMASK
    control_access: SocketAccess = OWNER_ALONE
    personality: Personality = OURS
    metrics: MetricsAddress | None = None


class Daemon:
    """Accepts virtual machines and serves each until it goes away."""

    def __init__(self, options: DaemonOptions, events: EventLog, recording: RecordingFile | None = None) -> None:
        """Open the socket. No event loop may run yet: a mistyped ``--fd`` could name one of its own sockets.

        ``recording`` is where the sessions are recorded, None for nowhere.

        Raises:
            BalloonError: the socket cannot be opened.
        """
        raise_fd_limit()
        self._options = options
        self._vms: dict[int, VmControl] = {}
        self._version = build_version(version(), f"{DISTRIBUTION} {version()}")
        self._perform = ControlCommands(self._vms, time.time, self._version, self._status()).perform
        with contextlib.ExitStack() as sockets:
            self._socket, self._listens = open_socket(options, sockets)
            self._control = self._open_control(sockets)
            self._metrics = open_metrics(options.metrics, self._perform, sockets)
            self._sockets = sockets.pop_all()
        self._events = events
        self._recording = recording
        self._executor = ThreadPoolExecutor(WORKERS_MAX, thread_name_prefix="discard")
        self._peers = Peers(self._executor)
        self._session_limit = SessionLimit(events.emit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_vm = 0
        self.on_overdue: Callable[[], None] = _wait_longer
        """Called on a thread of its own when the end of all sessions takes too long after a signal. :meth:`close` may
        be called there."""
        self._closing = threading.Lock()
        self._started = time.monotonic()
        self._stop = asyncio.Event()

    @property
    def held_up(self) -> bool:
        """Whether a worker is still held up by a front-end whose session has ended."""
        return bool(unreleased_sessions())

    def close(self) -> None:
        """Remove the sockets that were made here, also if :meth:`run` was never called."""
        with self._closing:
            self._sockets.close()

    def _open_control(self, sockets: contextlib.ExitStack) -> ControlServer | None:
        if self._options.control_path is None:
            return None
        listener = ListeningSocket(self._options.control_path, "--control", self._options.control_access)
        sockets.callback(listener.close)
        return ControlServer(listener, self._perform, self._version)

    def _status(self) -> DaemonStatus:
        options = self._options
        return DaemonStatus(
            lambda: self._last_vm,
            lambda: self._events.broken,
            socket_path=None if options.socket_path is None else str(options.socket_path),
            discard=options.discard,
            offered=feature_names(options.features),
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the one virtual machine of a connected ``--fd`` has gone."""
        loop = asyncio.get_running_loop()
        others = {signal.SIGHUP: self._events.reopen, signal.SIGUSR1: self._print_status}
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
            if self._control is not None:
                await self._control.start()
            if self._metrics is not None:
                self._metrics.start()
            if self._listens:
                await self._listen(self._socket)
            else:
                self._serve(self._socket)
                await asyncio.wait(
                    [*self._tasks, asyncio.ensure_future(self._stop.wait())], return_when="FIRST_COMPLETED"
                )
        finally:
            await self._finish()
            signals.close()

    def _print_status(self) -> None:
        if sys.stderr is None:  # closed, and `print` would take standard output, the events'
            return
        vms = {number: vm.info() for number, vm in self._vms.items()}
        uptime = time.monotonic() - self._started
        for line in status_lines(vms, sessions=self._last_vm, uptime=uptime, events=self._events.broken):
            print(f"{DISTRIBUTION}: {line}", file=sys.stderr)

    async def _listen(self, sock: socket.socket) -> None:
        accepting = AcceptLoop(sock, "a virtual machine", self._serve)
        accepting.start()
        address = _printable_address(sock)
        self._events.emit("listening", socket_path=address, pid=os.getpid())
        log.info("listening on %s", address)
        try:
            await self._stop.wait()
        finally:
            accepting.stop()
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        self._last_vm += 1
        task = asyncio.create_task(self._serve_vm(self._last_vm, sock), name=f"vm {self._last_vm}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_vm(self, vm: int, sock: socket.socket) -> None:
        session = self._new_session()

        def on_audible() -> None:
            log.info("vm %d connected, process %d", vm, connection.peer_pid)
            self._control_event("VM_CONNECTED", {"vm": vm, "pid": connection.peer_pid})

        events = SessionEvents(partial(self._events.prepare, vm=vm), self._session_limit, on_audible)
        recording = NOT_RECORDED if self._recording is None else RecordedSession(vm, self._recording.write)
        written = self._events.are_written
        connection = Connection(sock, session, self._peers, events.emit, written, events.prepare, recording)
        recording.begin(connection.peer_pid)
        self._give_control(vm, connection)
        events.begin(connection.peer_uid, connection.peer_pid)
        reason = "daemon stops"
        try:
            reason = await connection.run()
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
        except Exception:
            # A fault of the daemon ends one virtual machine's session only.
            log.exception("vm %d: internal error", vm)
            reason = "internal error"
        finally:
            self._take_control(vm)
            recording.end(reason)
            metrics = connection.metrics
            events.end(
                reason=reason,
                reports=metrics.reports,
                reported_bytes=metrics.reported_bytes,
                discarded_bytes=metrics.discarded_bytes,
                refused=dict(metrics.refused),
            )
            if events.audible:
                log.info("vm %d disconnected: %s", vm, reason)
                self._control_event("VM_DISCONNECTED", {"vm": vm, "reason": reason})

    def _new_session(self) -> Session:
        # A driver may have seen command ids of an earlier daemon, and ignores an id equal to the last one it saw.
        hinting = FreePageHinting(last_id=COMMAND_ID_FIRST + secrets.randbelow(COMMAND_IDS))
        balloon = VirtioBalloon(
            config=BalloonConfig(num_pages=self._options.balloon_pages),
            discard=self._options.discard,
            hinting=hinting,
            personality=self._options.personality.offering(self._options.features),
        )
        in_band = feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
        return Session(
            offered=self._options.features if CAN_LOG else self._options.features & ~LOG_ALL,
            balloon=balloon,
            offered_protocol_features=OFFERED_PROTOCOL_FEATURES & (~0 if self._options.in_band else ~in_band),
            queue_numbers=QueueNumbers.named(self._options.queue_numbers),
        )

    def _give_control(self, vm: int, connection: Connection) -> None:
        vm_control = self._vms[vm] = connection.control
        vm_control.name = self._name_of(connection.peer_pid)
        vm_control.state_memory(self._options.guest_memory, self._options.guest_reserve)
        vm_control.set_statistics_interval(self._options.statistics_interval)
        if (control := self._control) is not None:
            vm_control.notices.tell = lambda name, data: control.emit(name, {"vm": vm, **data})
            vm_control.on_balloon_change = lambda actual: control.balloon_changed(
                vm, logical_size(vm_control.info().guest_bytes, actual)
            )

    def _control_event(self, name: str, data: dict[str, object]) -> None:
        if self._control is not None:
            self._control.emit(name, data)

    def _name_of(self, pid: int) -> str:
        return guest_name(self._options.name_from, pid, self._options.socket_path)

    def _take_control(self, vm: int) -> None:
        del self._vms[vm]
        if self._control is not None:
            self._control.forget(vm)

    async def _finish(self) -> None:
        self._stop.set()
        if self._control is not None:
            await self._control.close()
        if self._metrics is not None:
            await self._metrics.close()
        self.close()  # after the control server, which has the event loop watch its socket
        self._peers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._session_limit.flush()
        self._executor.shutdown(wait=False, cancel_futures=True)  # a worker that is held up is not waited for


def open_socket(options: DaemonOptions, sockets: contextlib.ExitStack) -> tuple[socket.socket, bool]:
    """Return the socket that the options name, and whether it listens (else it is connected).

    ``sockets`` closes one that was made here, and removes its file.

    Raises:
        BalloonError: no such descriptor, not a unix stream socket, a path that is taken or cannot be bound.
    """
    if options.fd is not None:
        return inherited_socket(options.fd)
    assert options.socket_path is not None
    listener = ListeningSocket(options.socket_path, "--socket-path", options.socket_access)
    sockets.callback(listener.close)
    return listener.socket, True


def _printable_address(sock: socket.socket) -> str:
    # The name of an abstract socket comes as bytes with a leading zero, which people write as @.
    address: str | bytes = sock.getsockname()
    return address if isinstance(address, str) else "@" + address[1:].decode(errors="backslashreplace")


def _wait_longer() -> None:
    pass


def raise_fd_limit() -> None:
    """Raise the soft limit of open files to the hard one: a virtual machine takes about a dozen, so the customary 1024
    would end at eighty machines.

    Raises:
        BalloonError: the limit stays below :data:`FDS_LEAST`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < FDS_LEAST:
        raise BalloonError(f"at most {limit} open files are allowed (ulimit -n), and {FDS_LEAST} are needed")
    _grow_fd_table(FD_TABLE if limit == resource.RLIM_INFINITY else min(limit, FD_TABLE))


def _grow_fd_table(size: int) -> None:
    # With threads Linux waits for an RCU grace period whenever the table grows (fs/file.c, expand_fdtable()): up to
    # 100 ms for everyone, in the middle of receiving one guest's descriptors. Now there are none yet.
    with open("/dev/null", "rb") as file, contextlib.suppress(OSError):
        os.close(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, size - 1))
