"""The daemon's socket, looked at before a kernel is started: does a process listen there?"""

import contextlib
import os
import socket
import stat
from pathlib import Path

from protocol.errors import BalloonError

_SO_ACCEPTCON = 0x10000  # in the flags of /proc/net/unix: the socket listens


def require_listening(path: Path) -> None:
    """Return if a process listens on the unix socket ``path``.

    Read from ``/proc/net/unix`` where possible: a trial connection would be a virtual machine to the daemon.

    Raises:
        BalloonError: the path does not exist, is not a socket, has no listener, or may not be connected to.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise BalloonError(f"--socket-path {path}: {error.strerror} (start vhost-user-balloon first)") from error
    if not stat.S_ISSOCK(kind):
        raise BalloonError(f"--socket-path {path}: not a socket")
    if not os.access(path, os.W_OK):
        raise BalloonError(f"--socket-path {path}: {os.strerror(13)}")
    if is_listening(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(_short_name(path))
        except BlockingIOError:
            pass
        except OSError as error:
            reason = "no process listens there" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise BalloonError(f"--socket-path {path}: {reason} (start vhost-user-balloon first)") from error


def is_listening(path: Path) -> bool:
    """Tell whether ``/proc/net/unix`` shows a listener bound to ``path``, under this name or its resolved one."""
    names = {str(path), str(path.absolute()), str(path.resolve())}
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] in names and int(fields[3], 16) & _SO_ACCEPTCON:
                return True
    return False


def _short_name(path: Path) -> str:
    """Return a name of the path that is short enough for a socket address (108 bytes)."""
    name, relative = str(path), os.path.relpath(path)
    return min(name, relative, key=len)
