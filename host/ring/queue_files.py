"""The descriptors of one queue: the kick that the driver gives, and how it is interrupted."""

import contextlib
import os
import select
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from host.balloon.balloon_statistics import BalloonStatistics
from host.ring.eventfd_signal import EventfdSignal
from protocol.errors import VhostUserError

_EIGHT_BYTES = (1).to_bytes(8, "little")

_EVENTFD = "anon_inode:[eventfd]"
"""How procfs names the target of an eventfd (proc(5), /proc/pid/fd)."""


class CallFile:
    """The descriptor that interrupts the driver. Never raises: the guest's end is not ours.

    It does not block either, see :mod:`host.ring.eventfd_signal`. Only where the kernel offers no such way does a
    front-end that fills its counter between our look and our write hold the worker up, for its own queue;
    :meth:`relieve` gets it out again. Of other files, such as a terminal whose output was stopped, nothing would, so
    none is taken but pipes and sockets.
    """

    def __init__(self, fd: int) -> None:
        """Take ``fd``.

        Raises:
            VhostUserError: it is neither an eventfd nor a pipe nor a socket; the caller still owns it.
        """
        mode = os.fstat(fd).st_mode
        self._is_pipe = stat.S_ISFIFO(mode)
        if not (self._is_pipe or stat.S_ISSOCK(mode) or os.readlink(f"/proc/self/fd/{fd}") == _EVENTFD):
            raise VhostUserError("only an eventfd, a pipe or a socket can be signalled")
        self.fd = fd
        # User Mode Linux passes a stream socket. MSG_DONTWAIT leaves its flags alone, which both ends share.
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None
        self._eventfd = EventfdSignal(fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def signal(self) -> None:
        """Tell the driver once. A full descriptor has an interrupt pending anyway; a closed one has no reader."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(_EIGHT_BYTES, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif self._is_pipe:
                os.pwritev(self.fd, [_EIGHT_BYTES], -1, os.RWF_NOWAIT)
            elif not self._eventfd.signal() and self._poll.poll(0):
                os.write(self.fd, _EIGHT_BYTES)

    def relieve(self) -> None:
        """Let go a worker that may be held up in :meth:`signal`: empty an eventfd that is full.

        No honest counter is ever full, and the write that waits then is an interrupt of its own.
        """
        poll = select.poll()  # not the worker's, which may be in use
        poll.register(self.fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            if self._socket is None and not poll.poll(0):
                os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)


class KeptBuffer(NamedTuple):
    """The statistics buffer that was held when the ring stopped: the ring's base there, and what it said."""

    base: int
    statistics: BalloonStatistics


@dataclass(slots=True)
class QueueFiles:
    """The descriptors of one queue, which outlive the times it runs. They are owned here.

    ``token`` says how the queue left its ring when it was stopped. ``send_call`` and ``send_err`` stand in for a call
    and an error descriptor that the front-end did not give. ``relieve_log`` does :meth:`CallFile.relieve` for what the
    queue's worker signals besides these. ``kept`` is what the device had in hand, and finds again when it goes on.
    """

    kick: int | None = None
    call: CallFile | None = None
    err: CallFile | None = None
    token: int = 0
    kept: KeptBuffer | None = None
    send_call: Callable[[], None] | None = None
    send_err: Callable[[], None] | None = None
    relieve_log: Callable[[], None] = lambda: None

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

    def relieve(self) -> None:
        """Let go a worker that the front-end holds up, see :meth:`CallFile.relieve`."""
        for file in (self.call, self.err):
            if file is not None:
                file.relieve()
        self.relieve_log()

    def close(self) -> None:
        """Close all of them."""
        if self.kick is not None:
            os.close(self.kick)
        for file in (self.call, self.err):
            if file is not None:
                file.close()
        self.kick = self.call = self.err = None
