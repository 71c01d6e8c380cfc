"""One hostile session as its acts see it: the random numbers, the machine as far as it was brought up, ways to send."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import IntEnum
from random import Random
from typing import Final

from protocol.message_limits import FDS_MAX
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from scripts.check.machine.connection import FrontendConnection
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.vhost_user_device import VhostUserMachine

_PATIENCE: Final = 0.02
"""Seconds for which a session waits for the daemon to read, or to answer."""

NUMBERS: Final = (0, 1, 2, 3, 5, 7, 8, 31, 128, 255, 256, 4095, 4096, 4097, 32768, 65535, 1 << 31, (1 << 32) - 1)
"""Numbers near limits."""


class Gone(Exception):
    """The session cannot go on: the daemon has ended it, or reads no more."""


class Stage(IntEnum):
    """How far a device is brought up."""

    CONNECTED = 0
    NEGOTIATED = 1
    MEMORY = 2
    HALF = 3
    """Some of the rings run."""
    RUNNING = 4


class Attack:
    """A session. ``machine`` is None at :attr:`Stage.CONNECTED`; ``memory_is_whole`` turns False for good when the
    session's memory file was made smaller, after which its mapping must not be touched by us."""

    def __init__(
        self, random: Random, stage: Stage, connection: FrontendConnection, machine: VhostUserMachine | None
    ) -> None:
        self.random = random
        self.stage = stage
        self.machine = machine
        self.memory_is_whole = True
        self._connection = connection
        self._stack = ExitStack()
        self._stack.callback(connection.close if machine is None else machine.close)
        self.socket: socket.socket = connection.socket
        self.socket.setblocking(False)

    @property
    def queues(self) -> Sequence[DriverQueue]:
        """The rings that an act may write to: none where there is no memory, or it was made smaller."""
        if self.machine is None or not self.memory_is_whole:
            return ()
        return list(self.machine.queues.values())

    def number(self, bits: int = 32) -> int:
        """Return a number of at most ``bits`` bits, most often one near a limit."""
        if self.random.random() < 0.7:
            return (self.random.choice(NUMBERS) * self.random.choice((1, 1, -1))) & ((1 << bits) - 1)
        return self.random.getrandbits(bits)

    def keep_fd(self, fd: int) -> int:
        """Close a descriptor of ours at the end; return it."""
        self._stack.callback(os.close, fd)
        return fd

    def keep(self, close: Callable[[], object]) -> None:
        """Call ``close`` at the end."""
        self._stack.callback(close)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, descriptors with the first of them, and wait a moment where the daemon does not read.

        Raises:
            Gone: the session has ended, or the daemon reads no more.
        """
        left = memoryview(data)
        while left:
            try:
                sent = socket.send_fds(self.socket, [left], list(fds)) if fds else self.socket.send(left)
            except BlockingIOError:
                if not self._ready(select.POLLOUT):
                    raise Gone from None
                continue
            except OSError as error:  # gone, or too many descriptors on their way
                raise Gone from error
            left, fds = left[sent:], ()

    def request(self, request: FrontendRequest, payload: object = None, fds: Sequence[int] = ()) -> None:
        """Send a well-formed message. Raises as :meth:`send` does."""
        self.send(build_message(request, payload, need_reply=self.random.random() < 0.5), fds)  # type: ignore[arg-type]

    def drain(self) -> None:
        """Read what has come and close its descriptors. Raises :class:`Gone` when the session has ended."""
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, FDS_MAX)
                for fd in fds:
                    os.close(fd)
                if not data:
                    raise Gone
        except BlockingIOError:
            return
        except OSError as error:
            raise Gone from error

    def settle(self) -> None:
        """Wait a moment for an answer, so that what was sent before is handled. Raises as :meth:`send` does."""
        self.drain()
        self.send(build_message(FrontendRequest.GET_FEATURES))
        if self._ready(select.POLLIN):
            self.drain()

    def _ready(self, events: int) -> bool:
        poll = select.poll()
        poll.register(self.socket, events)
        return bool(poll.poll(_PATIENCE * 1000))

    def close(self) -> None:
        """End the session and release everything."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(None)
        self._stack.close()
