"""The descriptor by which the driver kicks a queue: an eventfd, a pipe or a unix stream socket."""

import array
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

from host.descriptors.pipe import Pipe
from host.descriptors.received_file import FileKind, close_files, signal_kind
from protocol.errors import VirtqueueError
from protocol.vhost_user import FDS_MAX

_KICK_BYTES: Final = 512
"""An eventfd gives 8 bytes however often it was kicked, a pipe or a socket may have as many for each time."""

_ANCILLARY_SPACE: Final = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
"""Room for all descriptors that one read of a socket can bring."""


class KickFile:
    """A kick descriptor, which it owns. ``gone`` is set when the driver's end was closed for good.

    ``held_by_others`` says that another process can hold a lock for which a read waits, so that only a worker may read:
    the readers of a pipe or a socket share one, those of an eventfd do not.
    """

    def __init__(self, fd: int, close: Callable[[Iterable[int]], None] = close_files) -> None:
        """Take ``fd``. ``close`` closes descriptors that the driver sends where there are none to send.

        Raises:
            VhostUserError: it cannot be a kick descriptor; the caller still owns it.
        """
        kind = signal_kind(fd)
        self.fd = fd
        self.gone = False
        self.held_by_others = kind is not FileKind.EVENTFD
        self._close = close
        self._pipe = Pipe(fd) if kind is FileKind.PIPE else None
        self._socket = socket.socket(fileno=fd) if kind is FileKind.SOCKET else None

    def take(self) -> bool:
        """Read what is there. Return whether the driver has kicked.

        Raises:
            VirtqueueError: it cannot be read, for a reason that is not the driver's end.
        """
        try:
            taken = self._read()
        except BlockingIOError:
            return False
        except ConnectionError:
            taken = False
        except OSError as error:
            raise VirtqueueError(f"the kick descriptor cannot be read: {error.strerror}") from error
        self.gone = not taken
        return taken

    def _read(self) -> bool:
        # No O_NONBLOCK: the flag would be the driver's too.
        if self._pipe is not None:
            return bool(self._pipe.read(_KICK_BYTES))
        if self._socket is None:
            return bool(os.preadv(self.fd, [bytearray(_KICK_BYTES)], -1, os.RWF_NOWAIT))
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        data, ancillary, _, _ = self._socket.recvmsg(_KICK_BYTES, _ANCILLARY_SPACE, flags)
        for _, _, payload in ancillary:
            self._close(array.array("i", payload[: len(payload) // 4 * 4]))
        return bool(data)

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        elif self._pipe is not None:
            self._pipe.close()
        else:
            os.close(self.fd)
