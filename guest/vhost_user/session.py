"""One connection of the machine's front-end to a back-end: the socket, the channel for the back-end's own requests."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Final, TypeVar

from guest.vhost_user.frontend import Call, Frontend
from guest.vhost_user.session_channel import BackendChannel, RequestChannel
from protocol.errors import SessionEnded
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import Payload

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a back-end may take to bring its device up."""

Result = TypeVar("Result")


def _always() -> bool:
    return True


async def in_time(path: Path, work: Coroutine[object, object, None]) -> None:
    """Do ``work``, which brings up the device of the back-end that listens at ``path``, if that answers in time.

    Raises:
        SessionEnded: it does not, or nobody listens there.
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

    ``take_request`` answers the back-end's requests with a status, 0 for success. ``on_lost`` hears why when the
    back-end went away after :meth:`watch`.
    """

    def __init__(
        self, protocol_features: int, take_request: Callable[[Message], int], on_lost: Callable[[str], None]
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._take_request = take_request
        self._on_lost = on_lost
        self._requests = RequestChannel(self._socket, lambda reason: self._on_lost(reason))
        self._channel: BackendChannel | None = None
        self.frontend = Frontend(protocol_features)

    async def open(self, path: Path) -> int:
        """Connect to the back-end that listens at ``path``; return the features that its device offers.

        Raises:
            OSError: nobody listens there.
            SessionEnded: the back-end went away.
            VhostUserError: it refused.
        """
        await asyncio.get_running_loop().sock_connect(self._socket, os.fspath(path))
        offered = await self.call(self.frontend.offer())
        ours, theirs = socket.socketpair()
        self._channel = BackendChannel(
            ours, lambda message: self._take_request(message), lambda reason: self.break_off(reason)
        )
        self._channel.watch()
        with theirs:
            await self.call(self.frontend.set_backend_channel(theirs.fileno()))
        return offered

    def hand_over(self, take_request: Callable[[Message], int], on_lost: Callable[[str], None]) -> None:
        """From now on serve somebody else."""
        self._take_request = take_request
        self._on_lost = on_lost

    async def call(self, calls: Generator[Call, Payload, Result], is_wanted: Callable[[], bool] = _always) -> Result:
        """Send the messages of ``calls``; see :meth:`guest.vhost_user.session_channel.RequestChannel.call`."""
        return await self._requests.call(calls, is_wanted)

    def take_file(self) -> int | None:
        """Hand out the file descriptor that came with the last answer; whoever takes it closes it."""
        return self._requests.take_file()

    def watch(self) -> None:
        """Notice from now on when the back-end goes away."""
        self._requests.watch()

    def break_off(self, reason: str) -> None:
        """End the session from this side; see :meth:`guest.vhost_user.session_channel.RequestChannel.break_off`."""
        self._requests.break_off(reason)

    def end(self) -> None:
        """Send no more. Without effect the second time."""
        self._requests.end()

    def close(self) -> None:
        """Close the connection. Without effect the second time."""
        self._requests.end()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._socket.close()
