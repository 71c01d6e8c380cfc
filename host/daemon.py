"""The daemon: one listening socket (or one connected one), many virtual machines, none waiting for another.

Must not know: messages, rings.
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host.connection import Connection
from host.session import Session
from host.virtio_balloon import VirtioBalloon
from protocol.errors import UsageError
from protocol.events import EventLog
from protocol.virtio_balloon import BalloonConfig

log = logging.getLogger(__name__)

WORKERS_MAX: Final = 256
"""Most threads that discard at the same time. They are made only when there is work for them, and a guest needs at
most one for each of its queues, so guests that are slow on purpose leave enough for the others."""

_BACKLOG: Final = 128
_FD_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """How the daemon was asked to run. Exactly one of ``socket_path`` and ``fd`` is given."""

    socket_path: Path | None
    fd: int | None
    features: int
    discard: bool
    balloon_pages: int


class Daemon:
    """Accepts virtual machines and serves each until it goes away."""

    def __init__(self, options: DaemonOptions, events: EventLog) -> None:
        """Take the socket. No event loop may run yet: its own sockets would pass for a mistyped ``--fd``.

        Raises:
            UsageError: the socket cannot be had.
        """
        self._options = options
        self._socket, self._listens = open_socket(options)
        self._events = events
        self._executor = ThreadPoolExecutor(WORKERS_MAX, thread_name_prefix="discard")
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_vm = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the one virtual machine of a connected ``--fd`` has gone."""
        _raise_fd_limit()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            if self._listens:
                await self._listen(self._socket)
            else:
                self._serve(self._socket)
                await asyncio.wait(
                    [*self._tasks, asyncio.ensure_future(self._stop.wait())], return_when="FIRST_COMPLETED"
                )
        finally:
            await self._finish()

    async def _listen(self, sock: socket.socket) -> None:
        path = self._options.socket_path
        identity = None if path is None else os.lstat(path)
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._accept, sock)
        address = _printable_address(sock)
        self._events.emit("listening", socket_path=address, pid=os.getpid())
        log.info("listening on %s", address)
        try:
            await self._stop.wait()
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()
            if path is not None and identity is not None:
                _unlink_own(path, identity)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                return
            # The connection stays in the backlog, so the listener stays readable: look again later, do not spin.
            log.warning("cannot accept a virtual machine: %s", error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(1.0, self._resume_accepting, listener)
            return
        self._serve(sock)

    def _resume_accepting(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0 and not self._stop.is_set():
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _serve(self, sock: socket.socket) -> None:
        self._last_vm += 1
        task = asyncio.create_task(self._serve_vm(self._last_vm, sock), name=f"vm {self._last_vm}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_vm(self, vm: int, sock: socket.socket) -> None:
        balloon = VirtioBalloon(
            config=BalloonConfig(num_pages=self._options.balloon_pages), discard=self._options.discard
        )
        session = Session(offered=self._options.features, balloon=balloon)

        def emit(event: str, **fields: object) -> None:
            self._events.emit(event, vm=vm, **fields)

        connection = Connection(sock, session, self._executor, emit)
        pid = connection.peer_pid
        emit("connected", pid=pid)
        log.info("vm %d connected, process %d", vm, pid)
        reason = "daemon stops"
        try:
            reason = await connection.run()
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
        except Exception:
            # A fault of ours, and one virtual machine's session is all that it may cost.
            log.exception("vm %d: internal error", vm)
            reason = "internal error"
        finally:
            metrics = connection.metrics
            emit(
                "disconnected",
                reason=reason,
                reports=metrics.reports,
                reported_bytes=metrics.reported_bytes,
                discarded_bytes=metrics.discarded_bytes,
                refused=dict(metrics.refused),
            )
            log.info("vm %d disconnected: %s", vm, reason)

    async def _finish(self) -> None:
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._executor.shutdown(wait=True)


def open_socket(options: DaemonOptions) -> tuple[socket.socket, bool]:
    """Return the socket that the options name, and whether it listens (else it is connected).

    Raises:
        UsageError: no such descriptor, not a unix stream socket, a path that is taken or cannot be bound.
    """
    if options.fd is not None:
        return _inherited_socket(options.fd)
    assert options.socket_path is not None
    return _bind(options.socket_path), True


def _inherited_socket(fd: int) -> tuple[socket.socket, bool]:
    if not 0 <= fd <= _FD_MAX:
        raise UsageError(f"--fd {fd}: not a file descriptor number")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"--fd {fd}: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise UsageError(f"--fd {fd}: not a unix stream socket")
    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not listens:
        try:
            sock.getpeername()
        except OSError as error:
            sock.detach()
            raise UsageError(f"--fd {fd}: the socket neither listens nor is connected") from error
    return sock, listens


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        # "AF_UNIX path too long" carries no errno.
        raise UsageError(f"--socket-path {path}: {error.strerror or error}") from error
    except UsageError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    # A socket file outlives a daemon that was killed. It may go, unless somebody still listens on it.
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise UsageError(f"--socket-path {path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            log.info("removing the stale socket %s", path)
            os.unlink(path)
        except BlockingIOError:
            raise UsageError(f"--socket-path {path}: another process listens there") from None
        else:
            raise UsageError(f"--socket-path {path}: another process listens there")


def _unlink_own(path: Path, identity: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (identity.st_dev, identity.st_ino):
            os.unlink(path)


def _printable_address(sock: socket.socket) -> str:
    # The name of an abstract socket comes as bytes with a leading zero, which people write as @.
    address: str | bytes = sock.getsockname()
    return address if isinstance(address, str) else "@" + address[1:].decode(errors="backslashreplace")


def _raise_fd_limit() -> None:
    # A virtual machine takes about a dozen descriptors; the customary soft limit of 1024 would end at eighty of them.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
