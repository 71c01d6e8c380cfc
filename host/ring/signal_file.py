"""The common part of kick, call and error descriptors: an eventfd, a pipe or a unix stream socket."""

import os
import select
import socket
from typing import Final

from host.descriptors.pipe import Pipe
from host.descriptors.received_file import FileKind, signal_kind

DRAINED_PIECES: Final = 512
"""Most pieces that one :meth:`SignalFile.drain` takes out."""

_PIECE_BYTES: Final = 4096
"""Bytes of one read, which ends earlier where descriptors were sent."""


class SignalFile:
    """A descriptor on which one side of a queue signals the other. It owns ``fd``."""

    def __init__(self, fd: int) -> None:
        """Take ``fd``.

        Raises:
            VhostUserError: it is neither an eventfd nor a pipe nor a unix stream socket; the caller still owns it.
        """
        self.kind = signal_kind(fd)
        self.fd = fd
        self._pipe = Pipe(fd) if self.kind is FileKind.PIPE else None
        # User Mode Linux passes a stream socket. MSG_DONTWAIT leaves its flags alone, which both ends share.
        self._socket = socket.socket(fileno=fd) if self.kind is FileKind.SOCKET else None
        self._at_end = False

    def has_unread(self) -> bool:
        """Return whether it is a socket with something to receive. Never waits."""
        if self._socket is None or self._at_end:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN | select.POLLPRI)
        return bool(poll.poll(0))

    def drain(self) -> None:
        """Receive what is queued in the socket, a bounded part of it, and drop it.

        The kernel closes descriptors that were sent: there is no room for them in this call. That may wait, and so may
        the read itself if another process has the socket.
        """
        assert self._socket is not None
        try:
            for _ in range(DRAINED_PIECES):
                if not self._socket.recv(_PIECE_BYTES, socket.MSG_DONTWAIT):
                    self._at_end = True
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._at_end = True  # the other end was closed before it had read all

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        elif self._pipe is not None:
            self._pipe.close()
        else:
            os.close(self.fd)
