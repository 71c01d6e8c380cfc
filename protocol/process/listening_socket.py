"""Unix sockets to listen on: made at a path where no other process listens, or inherited and checked."""

import contextlib
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError, UsageError

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_FD_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect to a socket: the permissions of its file, else the umask decides, and the id of its group. A
    process needs write permission to connect."""

    mode: int | None = None
    group: int | None = None


BY_UMASK: Final = SocketAccess()
OWNER_ALONE: Final = SocketAccess(0o600)


class ListeningSocket:
    """A socket that listens at ``path``, and its socket file. Error messages begin with ``option``, such as
    ``--control``.

    Beside it is ``path.lock``, locked for as long as the socket listens. Of several processes that find the socket file
    of one that was killed, only the one that has the lock replaces it.
    """

    def __init__(
        self,
        path: Path,
        option: str,
        access: SocketAccess = BY_UMASK,
        inherited: socket.socket | None = None,
        *,
        keeps_file: bool = False,
    ) -> None:
        """Listen. The socket file of a process that was killed is replaced.

        ``inherited`` is a socket that listens at ``path`` already. With ``keeps_file`` the file is another's to remove,
        and the access to it stays as it is.

        Raises:
            BalloonError: another process listens there, a file of another kind is there, or it cannot be created.
        """
        self.path = path
        self.closed = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if inherited is None else inherited
        self._keeps_file = keeps_file
        self.on_close: Callable[[], object] = lambda: None
        """Called once, when it ceases to listen for good."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.socket.close)
            try:
                self._lock = _FileLock(path, option)
                undo.callback(self._lock.release)
                if inherited is None:
                    _remove_stale(path, option)
                    self._bind(access)
                else:
                    self._adopt(access)
            except OSError as error:
                # "AF_UNIX path too long" carries no errno.
                raise BalloonError(f"{option} {path}: {error.strerror or error}") from error
            undo.pop_all()

    def _bind(self, access: SocketAccess) -> None:
        path = os.fspath(self.path)
        if access.mode is not None:
            os.fchmod(self.socket.fileno(), access.mode & 0o700)  # the file begins with these (unix_bind() in Linux)
        self.socket.bind(path)
        status = os.lstat(path)
        self._identity = status.st_dev, status.st_ino
        try:
            self._own_group, self._has_group = status.st_gid, False
            self._own_mode = 0o777 & ~_umask() if access.mode is not None else stat.S_IMODE(status.st_mode)
            self._give(access)
            self.socket.listen(_BACKLOG)  # last: only now can a process connect
        except OSError:
            self._unlink()
            raise

    def _adopt(self, access: SocketAccess) -> None:
        status = os.lstat(self.path)
        self._identity = status.st_dev, status.st_ino
        self._own_group, self._has_group = os.getegid() if access.group is not None else status.st_gid, False
        self._own_mode = 0o777 & ~_umask()
        if not self._keeps_file:
            self._give(access)

    def give(self, access: SocketAccess) -> None:
        """Change who may connect. Raises OSError, with the file as it was or partly changed."""
        mode = self._own_mode if access.mode is None else access.mode
        self._give(SocketAccess(mode, self._own_group if access.group is None and self._has_group else access.group))

    def _give(self, access: SocketAccess) -> None:
        path = os.fspath(self.path)
        if access.group is not None:
            os.chown(path, -1, access.group)
            self._has_group = True
        if access.mode is not None:
            os.chmod(path, access.mode)

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this socket's. Closing again has no effect."""
        if self.closed:
            return
        self.closed = True
        if not self._keeps_file:
            self.on_close()
        self.socket.close()
        if not self._keeps_file:
            self._unlink()
        self._lock.release()

    @property
    def has_lost_file(self) -> bool:
        """Whether its file has been removed or replaced, so that a process can connect no more. One whose file is
        another's has lost nothing."""
        return not self._keeps_file and not self._is_in_place()

    def _is_in_place(self) -> bool:
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def leave_file(self) -> None:
        """Have :meth:`close` leave the file: another process has the socket, or will have it."""
        self._keeps_file = True

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_in_place():
                os.unlink(self.path)


def _umask() -> int:
    # os.umask() would change it for a moment, for all threads.
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith("Umask:")), 0o077)


class _FileLock:
    """An exclusive lock on the file ``path.lock``, which exists while it is held."""

    def __init__(self, path: Path, option: str) -> None:
        """Take the lock, or raise BalloonError at once if another process holds it."""
        self._path = f"{path}.lock"
        while True:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except PermissionError as error:
                raise BalloonError(f"{option} {self._path}: {error.strerror}") from error
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                raise BalloonError(f"{option} {path}: another process listens there") from None
            if self._is_in_place():
                return
            os.close(self._fd)  # its holder has removed it meanwhile: this lock would exclude no other process

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and let the lock go, in this order."""
        with contextlib.suppress(OSError):
            if self._is_in_place() and os.fstat(self._fd).st_size == 0:  # else it is somebody's file
                os.unlink(self._path)
        os.close(self._fd)


def _remove_stale(path: Path, option: str) -> None:
    # A socket file outlives a process that was killed. It is removed unless a process still listens on it.
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BalloonError(f"{option} {path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            log.info("removing the stale socket %s", path)
            os.unlink(path)
        except BlockingIOError:
            raise BalloonError(f"{option} {path}: another process listens there") from None
        else:
            raise BalloonError(f"{option} {path}: another process listens there")


def inherited_socket(fd: int) -> tuple[socket.socket, bool]:
    """Return descriptor ``fd`` as a unix stream socket, and whether it listens (otherwise it is connected).

    Raises:
        UsageError: ``fd`` is outside the range of descriptor numbers.
        BalloonError: it is not such a socket; the descriptor then stays open.
    """
    if not 0 <= fd <= _FD_MAX:
        raise UsageError(f"--fd {fd}: not a file descriptor number")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BalloonError(f"--fd {fd}: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise BalloonError(f"--fd {fd}: not a unix stream socket")
    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not listens:
        try:
            sock.getpeername()
        except OSError as error:
            sock.detach()
            raise BalloonError(f"--fd {fd}: the socket neither listens nor is connected") from error
    return sock, listens
