"""The descriptors of one queue: the kick that the driver gives, and how it is interrupted."""

import contextlib
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from host.balloon.balloon_statistics import BalloonStatistics
from host.ring.eventfd_signal import EventfdSignal
from host.ring.kick_file import KickFile
from host.ring.signal_file import SignalFile
from protocol.vhost_user import FrontendRequest

_EIGHT_BYTES = (1).to_bytes(8, "little")


def _ignore(_failure: str) -> None:
    pass


class CallFile(SignalFile):
    """The descriptor that interrupts the driver. Signalling never raises: the guest's end is outside our control.

    It does not block either, see :mod:`host.ring.eventfd_signal`. Only on a kernel without that support can a front-end
    that fills its counter between our poll and our write block the worker, of its own queue; :meth:`relieve` frees the
    worker. Other files, such as a terminal whose output was stopped, would block it without a remedy, so only eventfds,
    pipes and sockets are accepted.
    """

    def __init__(self, fd: int) -> None:
        """Take ``fd``.

        Raises:
            VhostUserError: it is neither an eventfd nor a pipe nor a unix stream socket; the caller still owns it.
        """
        super().__init__(fd)
        self._has_failed = False
        self._eventfd = EventfdSignal(fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def signal(self, on_failure: Callable[[str], None] = _ignore) -> None:
        """Signal the driver once. A full descriptor already has an interrupt pending, a closed one has no reader.

        ``on_failure`` is told why it cannot be done for another reason, once.
        """
        try:
            if self._socket is not None:
                self._socket.send(_EIGHT_BYTES, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif self._pipe is not None:
                self._pipe.write(_EIGHT_BYTES)
            elif not self._eventfd.signal() and self._poll.poll(0):
                os.write(self.fd, _EIGHT_BYTES)
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            if not self._has_failed:
                on_failure(f"a call or error descriptor cannot be signalled: {error.strerror}")
            self._has_failed = True

    def relieve(self) -> None:
        """Free a worker that may be blocked in :meth:`signal`: empty an eventfd that is full.

        Only a hostile front-end fills the counter, and the write that waited is an interrupt by itself.
        """
        poll = select.poll()  # not the worker's, which may be in use
        poll.register(self.fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            if self._socket is None and self._pipe is None and not poll.poll(0):
                os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)


class KeptBuffer(NamedTuple):
    """The statistics buffer that was held when the ring stopped: the ring's base there, and its content."""

    base: int
    statistics: BalloonStatistics


def _close_now(close: Callable[[], None]) -> None:
    close()


@dataclass(slots=True)
class QueueFiles:
    """The descriptors of one queue, which outlive the times it runs. They are owned here.

    ``token`` says how the queue left its ring when it was stopped. ``send_call`` and ``send_err`` stand in for a call
    and an error descriptor that the front-end did not give. ``relieve_log`` does :meth:`CallFile.relieve` for what the
    queue's worker signals besides these. ``close_by`` has a descriptor closed, which may take long. ``on_failure`` is
    told, from any thread, of an interrupt that could not be sent. ``kept`` is what the device had in hand when the ring
    stopped, and finds again when it goes on.
    """

    kick: KickFile | None = None
    call: CallFile | None = None
    err: CallFile | None = None
    token: int = 0
    kept: KeptBuffer | None = None
    send_call: Callable[[], None] | None = None
    send_err: Callable[[], None] | None = None
    relieve_log: Callable[[], None] = lambda: None
    close_by: Callable[[Callable[[], None]], None] = _close_now
    on_failure: Callable[[str], None] = _ignore

    def set(self, request: FrontendRequest, file: KickFile | CallFile | None) -> None:
        """Take ``file`` as what SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR names, in place of the earlier one."""
        old: KickFile | CallFile | None
        if request is FrontendRequest.SET_VRING_KICK:
            assert not isinstance(file, CallFile)
            old, self.kick = self.kick, file
        else:
            assert not isinstance(file, KickFile)
            if request is FrontendRequest.SET_VRING_CALL:
                old, self.call = self.call, file
            else:
                old, self.err = self.err, file
        if old is not None:
            self.close_by(old.close)

    def unread(self, *, served: bool) -> list[SignalFile]:
        """Return the descriptors that are not read in the course of service: the kick is, while the queue is
        ``served``."""
        return [file for file in (self.call, self.err, None if served else self.kick) if file is not None]

    @property
    def count(self) -> int:
        """How many descriptors there are."""
        return sum(file is not None for file in (self.kick, self.call, self.err))

    def signal_call(self) -> None:
        """Interrupt the driver, by descriptor or message, where one of them is set up."""
        if self.call is not None:
            self.call.signal(self.on_failure)
        elif self.send_call is not None:
            self.send_call()

    def signal_err(self) -> None:
        """Tell the front-end that the ring is broken, by descriptor or message, where one of them is set up."""
        if self.err is not None:
            self.err.signal(self.on_failure)
        elif self.send_err is not None:
            self.send_err()

    def relieve(self) -> None:
        """Free a worker that the front-end blocks, see :meth:`CallFile.relieve`."""
        for file in (self.call, self.err):
            if file is not None:
                file.relieve()
        self.relieve_log()

    def close(self) -> None:
        """Close all of them."""
        for file in (self.kick, self.call, self.err):
            if file is not None:
                self.close_by(file.close)
        self.kick = self.call = self.err = None
