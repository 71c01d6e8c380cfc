"""The descriptors of one queue: the kick that the driver gives, and how it is interrupted.

Must not know: rings, messages.
"""

import contextlib
import os
import select
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass

_EIGHT_BYTES = (1).to_bytes(8, "little")


class CallFile:
    """The descriptor that interrupts the driver. Never blocks for long, never raises: the guest's end is not ours."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        # User Mode Linux passes a stream socket. MSG_DONTWAIT leaves its flags alone, which both ends share.
        self._socket = socket.socket(fileno=fd) if is_socket else None
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def signal(self) -> None:
        """Tell the driver once. A full descriptor has an interrupt pending anyway; a closed one has nobody to tell."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(_EIGHT_BYTES, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif self._poll.poll(0):
                os.write(self.fd, _EIGHT_BYTES)

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)


@dataclass(slots=True)
class QueueFiles:
    """The descriptors of one queue, which outlive the times it runs. They are owned here.

    ``token`` says how the queue left its ring when it was stopped. ``send_call`` and ``send_err`` stand in for a call
    and an error descriptor that the front-end did not give.
    """

    kick: int | None = None
    call: CallFile | None = None
    err: CallFile | None = None
    token: int = 0
    send_call: Callable[[], None] | None = None
    send_err: Callable[[], None] | None = None

    def signal_call(self) -> None:
        """Interrupt the driver, if there is a way to."""
        if self.call is not None:
            self.call.signal()
        elif self.send_call is not None:
            self.send_call()

    def signal_err(self) -> None:
        """Tell the front-end that the ring is broken, if there is a way to."""
        if self.err is not None:
            self.err.signal()
        elif self.send_err is not None:
            self.send_err()

    def close(self) -> None:
        """Close all of them."""
        if self.kick is not None:
            os.close(self.kick)
        for file in (self.call, self.err):
            if file is not None:
                file.close()
        self.kick = self.call = self.err = None
