"""One direction of a socket: what is to be sent, in order, without waiting for the reader on the event loop."""

import array
import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from host.descriptors.socket_read import until_ready
from scripts.check.faults.passing.open_file import OpenFile

ROOM: Final = 64
"""Messages that may wait before the stream that they come from is read no further."""


class Outlet:
    """Sends on ``sock``, which stays the caller's, while :meth:`run` runs. ``on_sent`` is called with what is sent."""

    def __init__(self, sock: socket.socket, on_sent: Callable[[bytes, Sequence[int]], None]) -> None:
        self._socket = sock
        self._on_sent = on_sent
        self._waiting: deque[tuple[bytes, list[OpenFile]]] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._done = asyncio.Event()
        self._ends = False
        self.is_broken = False

    def put(self, data: bytes, files: list[OpenFile]) -> None:
        """Send ``data`` with ``files``. Without effect once the reader has gone."""
        if not self.is_broken:
            self._waiting.append((data, files))
            self._ready.set()

    async def has_room(self) -> None:
        """Return when the reader has taken what it was sent, but for a little, or has gone."""
        while len(self._waiting) >= ROOM and not self.is_broken:
            self._room.clear()
            await self._room.wait()

    async def end(self) -> None:
        """Close this direction once everything is sent, and return then."""
        self._ends = True
        self._ready.set()
        await self._done.wait()

    async def run(self) -> None:
        """Send until :meth:`end`, or until the reader has gone."""
        try:
            while self._waiting or not self._ends:
                if not self._waiting:
                    self._ready.clear()
                    await self._ready.wait()
                    continue
                await self._send(*self._waiting[0])
                self._waiting.popleft()
                self._room.set()
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.is_broken = True
            self._waiting.clear()
            self._room.set()
        finally:
            self._done.set()

    async def _send(self, data: bytes, files: list[OpenFile]) -> None:
        fds = [file.fd for file in files]
        self._on_sent(data, fds)
        rest = memoryview(data)
        while rest:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._socket.sendmsg([rest], control, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await until_ready(self._socket.fileno(), loop.add_writer, loop.remove_writer)
                continue
            rest, fds = rest[sent:], []
