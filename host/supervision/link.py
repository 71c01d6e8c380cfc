"""One end of the way between the supervisor and a worker, on the event loop."""

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from host.supervision.packets import FILES_MAX, OF_NO_SESSION, PACKET_MAX, Packet, PacketError, parse_packet

_ROOM: Final = socket.CMSG_SPACE((FILES_MAX + 3) * array.array("i").itemsize)
_PACKETS_AT_ONCE: Final = 64
"""Packets that are taken in before the event loop looks at anything else."""
_BUFFERS_AT_END: Final = 16
"""How often so many are taken in when the other process has ended: more than the socket's buffer has room for."""


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new way."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Link:
    """Sends and receives packets over ``sock``, which it owns. ``on_packet`` is called with each one that comes, and
    ``on_gone`` when the other end was closed, after the last packet. ``on_bad`` is called with a
    :class:`PacketError` that a packet is or ``on_packet`` has raised, and the packet's descriptors; None raises it.

    No call waits. Packets that find no room wait in line; :meth:`flushed` returns when the kernel has them all, from
    where they reach the other process even if this one is killed.

    With ``keeps`` packets of sessions stay on the socket until ``on_packet`` has returned, and so outlive this process
    if another one has the socket too. One that was on it when this process was killed comes again there.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_packet: Callable[[Packet], None],
        on_gone: Callable[[], None],
        *,
        keeps: bool = False,
        on_bad: Callable[[PacketError, tuple[int, ...]], None] | None = None,
    ) -> None:
        self._socket = sock
        self._on_packet = on_packet
        self._on_gone = on_gone
        self._on_bad = on_bad
        self._keeps = keeps
        self._peek = socket.MSG_PEEK if keeps else 0
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._line: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._empty = asyncio.Event()
        self._empty.set()
        self.waiting = 0
        """Bytes that wait in line."""
        self.closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._receive)

    def send(self, packet: Packet) -> None:
        """Send ``packet``. Its descriptors stay the caller's."""
        if self.closed:
            return
        self._number += 1
        data = packet.build(self._number)
        if not self._line and self._try_to_send(data, packet.fds):
            return
        self._line.append((data, tuple(os.dup(fd) for fd in packet.fds)))
        self.waiting += len(data)
        if self._empty.is_set():
            self._empty.clear()
            self._loop.add_writer(self._socket.fileno(), self._send_line)

    async def flushed(self) -> None:
        """Return when no packet waits in line."""
        if self._line:
            await self._empty.wait()

    def _try_to_send(self, data: bytes, fds: tuple[int, ...]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the other end has gone, which the reader finds
        return True

    def _send_line(self) -> None:
        while self._line:
            data, fds = self._line[0]
            if not self._try_to_send(data, fds):
                return
            self._line.popleft()
            self.waiting -= len(data)
            _close(fds)
        self._loop.remove_writer(self._socket.fileno())
        self._empty.set()

    def take_all(self) -> None:
        """Take in all packets that have come, now: the process at the other end has ended. Another one may have its
        socket, and is not heard."""
        for _ in range(_BUFFERS_AT_END):
            self._receive()

    def _receive(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            if self.closed:
                return
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    PACKET_MAX + 1024, _ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC | self._peek
                )
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the other end was closed with packets unread, once; what it has sent comes still
            except OSError:
                data, ancillary, flags = b"", [], 0
            if not data:
                self.close()
                self._on_gone()
                return
            self._take_in(data, _rights(ancillary), complete=not flags & socket.MSG_CTRUNC)

    def _take_in(self, data: bytes, fds: tuple[int, ...], *, complete: bool) -> None:
        stays = self._keeps
        try:
            packet = parse_packet(data, fds, complete=complete)
            stays = stays and packet.kind not in OF_NO_SESSION
            if self._keeps and not stays:
                self._take_seen()
            self._on_packet(packet)
        except PacketError as error:
            if self._on_bad is None:
                raise
            self._on_bad(error, fds)
        if stays and not self.closed:
            self._take_seen()

    def _take_seen(self) -> None:
        self._socket.recv(1, socket.MSG_DONTWAIT)  # the rest of the packet goes with it, and its own descriptors

    def close(self) -> None:
        """Close this end. What waits in line is lost."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        for _, fds in self._line:
            _close(fds)
        self._line.clear()
        self._empty.set()
        self._socket.close()


def _rights(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return tuple(fds)


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
