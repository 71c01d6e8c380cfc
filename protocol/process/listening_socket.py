"""Unix sockets to listen on: made at a path where no other process listens, or inherited and checked."""

import contextlib
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError, UsageError

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_FD_MAX: Final = (1 << 31) - 1


class ListeningSocket:
    """A socket that listens at ``path``, and its socket file. Error messages begin with ``option``, such as
    ``--control``."""

    def __init__(self, path: Path, option: str) -> None:
        """Listen. The socket file of a process that was killed is replaced.

        Raises:
            BalloonError: another process listens there, a file of another kind is there, or it cannot be created.
        """
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path, option)
            self.socket.bind(os.fspath(path))
            self.socket.listen(_BACKLOG)
            status = os.lstat(path)
        except OSError as error:
            self.socket.close()
            # "AF_UNIX path too long" carries no errno.
            raise BalloonError(f"{option} {path}: {error.strerror or error}") from error
        except BalloonError:
            self.socket.close()
            raise
        self._identity = status.st_dev, status.st_ino

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this socket's."""
        self.socket.close()
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)


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
