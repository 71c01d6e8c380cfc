"""The descriptor by which the driver kicks a queue: an eventfd, a pipe or a unix stream socket."""

import os
from collections.abc import Callable, Iterable
from typing import Final

from host.descriptors.received_file import FileKind, close_files
from host.descriptors.socket_read import receive_bytes
from host.ring.signal_file import SignalFile
from protocol.errors import VirtqueueError

_KICK_BYTES: Final = 512
"""Bytes of one read. An eventfd gives 8 for any number of kicks, a pipe or a socket as many for each kick."""


class KickFile(SignalFile):
    """A kick descriptor, which it owns. ``gone`` is set when the driver's end was closed for good.

    ``held_by_others`` says that another process can hold a lock for which a read waits, so that only a worker may read:
    the readers of a pipe or a socket share one, those of an eventfd do not.
    """

    def __init__(self, fd: int, close: Callable[[Iterable[int]], None] = close_files) -> None:
        """Take ``fd``. ``close`` closes descriptors that the driver sends along with a kick.

        Raises:
            VhostUserError: it cannot be a kick descriptor; the caller still owns it.
        """
        super().__init__(fd)
        self.gone = False
        self.held_by_others = self.kind is not FileKind.EVENTFD
        self._close = close

    def take(self) -> bool:
        """Read the pending kicks. Return whether the driver has kicked.

        Raises:
            VirtqueueError: it cannot be read, for a reason other than the driver's end.
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
        return bool(receive_bytes(self._socket, _KICK_BYTES, self._close))
