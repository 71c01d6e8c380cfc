"""The front-end's own requests: one socket, one exchange at a time."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from guest.vhost_user.frontend import Call
from protocol.errors import BalloonError, SessionEnded, VhostUserError
from protocol.message_limits import FDS_MAX
from protocol.vhost_user import HEADER_SIZE
from protocol.vhost_user_codec import BadMessage, Channel, MessageReader
from protocol.vhost_user_payloads import Payload

_CHUNK: Final = 4096

Result = TypeVar("Result")


def _always() -> bool:
    return True


class RequestChannel:
    """The front-end's requests on ``sock``, which must be non-blocking and stays the caller's.

    Once watched, it calls ``on_lost`` with the reason when the back-end has gone away: requests fail from then on, and
    no discard is under way. Before :meth:`watch`, errors only reach the caller.
    """

    def __init__(self, sock: socket.socket, on_lost: Callable[[str], None]) -> None:
        self._socket = sock
        self.on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(Channel.BACKEND_REPLIES)
        self._turn = asyncio.Lock()
        self._files: list[int] = []
        self._readable: asyncio.Future[None] | None = None
        self._watched = False
        self._ended = False

    async def call(self, calls: Generator[Call, Payload, Result], is_wanted: Callable[[], bool] = _always) -> Result:
        """Send the messages of ``calls``, each with its answer, as one unit between those of other callers.

        ``is_wanted`` is called when it is their turn: the messages before may have changed the state.

        Raises:
            SessionEnded: the back-end went away, or the messages are not wanted any more.
            VhostUserError: the back-end refused, or its answer is invalid.
        """
        async with self._turn:
            if self._ended:
                raise SessionEnded("back-end gone")
            if not is_wanted():
                raise SessionEnded("the device has been reset or stopped")
            if not self._watched:
                return await self._run(calls)
            self._loop.remove_reader(self._socket.fileno())
            try:
                result = await self._run(calls)
            except SessionEnded as error:
                self._lose(str(error))
                raise
            except BalloonError as error:
                self.break_off(str(error))
                raise
            except asyncio.CancelledError:
                self.break_off("an answer of the back-end was not waited for")  # it would be taken for the next one's
                raise
            if not self._ended:
                self._loop.add_reader(self._socket.fileno(), self._on_readable)
            return result

    async def _run(self, calls: Generator[Call, Payload, Result]) -> Result:
        self._close_files()
        try:
            call = next(calls)
            while True:
                call = calls.send(await self._exchange(call))
        except StopIteration as stop:
            result: Result = stop.value
            return result
        except OSError as error:
            raise SessionEnded(f"back-end gone: {error.strerror}") from error

    async def _exchange(self, call: Call) -> Payload:
        sent = socket.send_fds(self._socket, [call.data], call.fds)
        await self._loop.sock_sendall(self._socket, call.data[sent:])
        if not call.reply_expected:
            return None
        while (message := self._reader.next_message()) is None:
            data, fds = await self._receive(self._reader.bytes_desired())
            if not data:
                raise SessionEnded(f"the back-end closed the connection during {call.request.name}")
            self._reader.feed(data, fds)
        self._files += message.fds
        if isinstance(message, BadMessage) or message.request is not call.request:
            raise VhostUserError(f"the back-end's answer to {call.request.name} is invalid")
        return message.payload

    async def _receive(self, size: int) -> tuple[bytes, list[int]]:
        # With file descriptors, which asyncio's own sock_recv would lose.
        while True:
            self._readable = self._loop.create_future()
            self._loop.add_reader(self._socket.fileno(), _wake, self._readable)
            try:
                await self._readable
            finally:
                if not self._ended:  # else end() has removed it
                    self._loop.remove_reader(self._socket.fileno())
            if self._ended:
                raise SessionEnded("back-end gone")
            with contextlib.suppress(BlockingIOError):
                data, fds, _, _ = socket.recv_fds(self._socket, size, FDS_MAX, socket.MSG_CMSG_CLOEXEC)
                return data, fds

    def take_file(self) -> int | None:
        """Hand out the file descriptor that came with the last answer; the caller closes it."""
        return self._files.pop() if self._files else None

    def _close_files(self) -> None:
        while (fd := self.take_file()) is not None:
            os.close(fd)

    def watch(self) -> None:
        """Notice from now on when the back-end goes away."""
        self._watched = True
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        # Between calls the back-end sends nothing here: anything that arrives ends the session.
        try:
            data = self._socket.recv(HEADER_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"back-end gone: {error.strerror}")
            return
        if data:
            self.break_off("the back-end spoke out of turn")
        else:
            self._lose("back-end gone")

    def break_off(self, reason: str) -> None:
        """End the session from this side. ``on_lost`` is called when the back-end has closed its end: until then it may
        be discarding the ranges of requests under way, and these pages must not be touched."""
        if self._ended:
            return
        self.end()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.on_lost(reason)  # not connected any more
            return
        self._loop.add_reader(self._socket.fileno(), self._on_farewell, reason)

    def _on_farewell(self, reason: str) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket.fileno())
            self.on_lost(reason)

    def _lose(self, reason: str) -> None:
        if not self._ended:  # only the first reason counts
            self.end()
            self.on_lost(reason)

    def end(self) -> None:
        """Stop reading and sending. Without effect the second time."""
        self._ended = True
        if self._readable is not None:
            _wake(self._readable)
        self._files += self._reader.take_fds()
        self._close_files()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
