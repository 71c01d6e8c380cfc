"""One connection of the machine's front-end to a back-end: the socket, the channel for the back-end's own requests."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

from guest.vhost_user.backend_channel import BackendChannel
from guest.vhost_user.frontend import Frontend
from guest.vhost_user.request_channel import RequestChannel
from protocol.errors import SessionEnded
from protocol.vhost_user_codec import Message

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a back-end may take to bring its device up."""


async def in_time(path: Path, work: Coroutine[object, object, None]) -> None:
    """Do ``work``, which brings up the device of the back-end that listens at ``path``, within a time limit.

    Raises:
        SessionEnded: the back-end does not answer in time, or no process listens there.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await work
    except TimeoutError as error:
        raise SessionEnded(f"the back-end at {path} does not answer") from error
    except OSError as error:
        raise SessionEnded(f"no back-end at {path}: {error.strerror or error}") from error


class Session:
    """A connection that negotiates ``protocol_features`` where they are offered.

    ``take_request`` answers the back-end's requests with a status, 0 for success. ``on_lost`` is called
    with the reason when the back-end went away after :meth:`.RequestChannel.watch`.
    """

    def __init__(
        self, protocol_features: int, take_request: Callable[[Message], int], on_lost: Callable[[str], None]
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._take_request = take_request
        self._channel: BackendChannel | None = None
        self.requests = RequestChannel(self._socket, on_lost)
        self.frontend = Frontend(protocol_features)

    async def open(self, path: Path) -> int:
        """Connect to the back-end that listens at ``path``; return the features that its device offers.

        Raises:
            OSError: no process listens there.
            SessionEnded: the back-end went away.
            VhostUserError: it refused.
        """
        await asyncio.get_running_loop().sock_connect(self._socket, os.fspath(path))
        offered = await self.requests.call(self.frontend.offer())
        ours, theirs = socket.socketpair()
        self._channel = BackendChannel(ours, self._take_request, self.requests.break_off)
        self._channel.watch()
        with theirs:
            await self.requests.call(self.frontend.set_backend_channel(theirs.fileno()))
        return offered

    def hand_over(self, take_request: Callable[[Message], int], on_lost: Callable[[str], None]) -> None:
        """Serve another attachment from now on."""
        self._take_request = take_request
        self.requests.on_lost = on_lost
        if self._channel is not None:
            self._channel.take = take_request

    def close(self) -> None:
        """Close the connection. Without effect the second time."""
        self.requests.end()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._socket.close()
