"""The common part of kick, call and error descriptors: an eventfd, a pipe or a unix stream socket."""

import os
import socket

from host.descriptors.pipe import Pipe
from host.descriptors.received_file import FileKind, signal_kind


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

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        elif self._pipe is not None:
            self._pipe.close()
        else:
            os.close(self.fd)
