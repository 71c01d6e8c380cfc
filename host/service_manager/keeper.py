"""The keeper: starts the daemon as its child, keeps the descriptors that it stores, and hands them to the next one.

It speaks what systemd speaks to a service of ``Type=notify`` with ``FileDescriptorStoreMax=``, where there is no
systemd. It knows nothing of what it keeps. A keeper that is killed takes with it what it keeps, but not the daemon.
"""

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from host.service_manager.kept_descriptors import KeptDescriptors, Restarts
from host.service_manager.notification import (
    LISTEN_FDS_START,
    NOTIFICATION_MAX,
    UNNAMED,
    handing_over,
    is_fd_name,
    parse_notification,
    without_handing_over,
)
from protocol.errors import BalloonError
from protocol.process.exit_status import how_ended

UPGRADE_PATIENCE: Final = 5.0
"""Seconds that a daemon has to let go of its guests; then it is killed, which they notice as little."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1)
UPGRADE: Final = signal.SIGUSR2
KEPT_SIGNALS: Final = (*STOP_SIGNALS, *PASSED_ON, UPGRADE)
"""All that the keeper acts upon."""

_CREDENTIALS: Final = struct.Struct("3i")
_ROOM: Final = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(253 * array.array("i").itemsize)


class Keeper:
    """Keeps the descriptors of the daemon that ``command`` starts, which notifies the socket at ``path``. ``say`` is
    called with lines for people."""

    def __init__(self, path: Path, command: Sequence[str], say: Callable[[str], None]) -> None:
        """Make the socket.

        Raises:
            BalloonError: it cannot be made, or another keeper has it.
        """
        self._path = path
        self._command = list(command)
        self._say = say
        self._kept = KeptDescriptors()
        self._restarts = Restarts()
        self._pid = 0
        self._started = 0.0
        self._next_start: float | None = None
        self._overdue: float | None = None
        self._has_been_ready = False
        self._is_ready = False
        self._stops = False
        self._complained = False
        self._socket = _notification_socket(path)

    def run(self) -> int:
        """Keep until a signal ends the daemon, or the daemon ends for good; return its exit status."""
        waking, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for each in (*KEPT_SIGNALS, signal.SIGCHLD):
            signal.signal(each, lambda *_: None)  # the wake-up descriptor tells of it
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(waking, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        self._start()
        status = None
        while status is None:
            poll.poll(self._milliseconds())
            self._take_notifications()
            numbers = b""
            with contextlib.suppress(BlockingIOError):
                numbers = os.read(waking, 64)
            for number in numbers:
                self._on_signal(number)
            status = self._look_after_daemon()
        return status

    def close(self) -> None:
        """Remove the socket. What is kept is kept until this process ends."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _milliseconds(self) -> int | None:
        times = [at for at in (self._next_start, self._overdue) if at is not None]
        return max(0, round((min(times) - time.monotonic()) * 1000) + 1) if times else None

    def _on_signal(self, number: int) -> None:
        if number in STOP_SIGNALS:
            self._stops = True
        elif number == UPGRADE and self._pid:
            self._overdue = time.monotonic() + UPGRADE_PATIENCE
        if number != signal.SIGCHLD and self._pid:
            os.kill(self._pid, signal.SIGTERM if number in STOP_SIGNALS else number)

    # -- the daemon -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._next_start = None
        self._started = time.monotonic()
        self._is_ready = False
        self._pid = os.fork()
        if self._pid == 0:
            self._become_daemon()

    def _become_daemon(self) -> NoReturn:
        try:
            kept = self._kept.all()
            end = LISTEN_FDS_START + len(kept)
            # Out of the way first: the descriptors of this process have the numbers that others are to have.
            fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for _, fd in kept]
            for place, fd in enumerate(fds):
                os.dup2(fd, LISTEN_FDS_START + place)
            environment = without_handing_over(os.environ) | {"NOTIFY_SOCKET": os.fspath(self._path)}
            environment |= handing_over([name for name, _ in kept], os.getpid())
            os.execve(self._command[0], self._command, environment)
        except OSError as error:
            self._say(f"the daemon cannot be started: {error.strerror}")
        finally:
            os._exit(1)

    def _look_after_daemon(self) -> int | None:
        # Returns the exit status if that is all.
        now = time.monotonic()
        if self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._take_notifications()  # before its end: what it has said still counts
                self._pid = 0
                return self._ended(status, now)
            if self._overdue is not None and now >= self._overdue:
                self._overdue = None
                self._say(f"the daemon does not let go of its guests for {UPGRADE_PATIENCE:.0f} s and is killed")
                os.kill(self._pid, signal.SIGKILL)
        elif self._stops:
            return 0
        elif self._next_start is not None and now >= self._next_start:
            self._start()
        return None

    def _ended(self, status: int, now: float) -> int | None:
        code = os.waitstatus_to_exitcode(status)
        upgrades, self._overdue = self._overdue is not None, None
        if self._stops:
            return max(code, 0)
        if upgrades and code == 0:
            self._start()
            return None
        if code == 0 or (not self._has_been_ready and code > 0):
            return code
        wait = self._restarts.after(now - self._started, was_ready=self._is_ready)
        how = how_ended(status)
        if not wait:
            self._complained = False
            what = f"{len(self._kept)} descriptor{'' if len(self._kept) == 1 else 's'}"
            self._say(f"the daemon has ended ({how}); another one goes on with {what}")
        elif not self._complained:
            self._complained = True
            self._say(f"the daemon ends at its start ({how}): the next one waits, longer each time")
        self._next_start = now + wait
        return None

    # -- what it says -----------------------------------------------------------------------------------------------

    def _take_notifications(self) -> None:
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    NOTIFICATION_MAX + 1, _ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            sender, fds = 0, array.array("i")
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender, _, _ = _CREDENTIALS.unpack(payload)
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(payload)
            if sender != self._pid:
                _close_aside(fds)  # another process of this user: what it says does not count
                continue
            if flags & socket.MSG_CTRUNC:
                self._say("descriptors were lost on the way: this process has too many open")
            try:
                self._take(parse_notification(data), fds)
            except BalloonError as error:
                _close_aside(fds)
                self._say(str(error))

    def _take(self, fields: dict[str, str], fds: Sequence[int]) -> None:
        name = fields.get("FDNAME", UNNAMED)
        if not is_fd_name(name):
            raise BalloonError(f"descriptors cannot be named {name!r:.40}")
        if fields.get("READY") == "1":
            self._has_been_ready = self._is_ready = True
        if fields.get("FDSTOREREMOVE") == "1":
            _close_aside(self._kept.remove(name))
        stores = fields.get("FDSTORE") == "1"
        refused = [fd for fd in fds if not (stores and self._kept.add(name, fd))]
        if refused and stores:
            self._say(f"{name} is not kept: {len(self._kept)} descriptors are kept already")
        _close_aside(refused)


def keep(path: Path, say: Callable[[str], None]) -> int:
    """Start this program again as a daemon, and keep its descriptors; return its exit status. This process must have
    one thread. Raises like :class:`Keeper`."""
    with contextlib.closing(Keeper(path, [sys.executable, *sys.orig_argv[1:]], say)) as keeper:
        return keeper.run()


def say_on_standard_error(line: str) -> None:
    """Write one line; it is lost if standard error takes none at present."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, f"{line}\n".encode())


def _notification_socket(path: Path) -> socket.socket:
    address = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(os.lstat(address).st_mode):
                    raise BalloonError(f"--keeper {path}: exists and is not a socket")
                try:
                    sock.connect(address)
                except ConnectionRefusedError:
                    os.unlink(address)  # that of a keeper that was killed
                else:
                    raise BalloonError(f"--keeper {path}: another keeper has it")
            os.fchmod(sock.fileno(), 0o600)  # the file begins with these (unix_bind() in Linux)
            sock.bind(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError as error:
            raise BalloonError(f"--keeper {path}: {error.strerror or error}") from error
        undo.pop_all()
    return sock


def _close_aside(fds: Sequence[int]) -> None:
    # The last one of a socket closes what was sent through it and not received, which may take its time.
    if fds:
        try:
            threading.Thread(target=_close_all, args=(tuple(fds),), daemon=True, name="closing").start()
        except RuntimeError:  # the limit of threads
            _close_all(tuple(fds))


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
