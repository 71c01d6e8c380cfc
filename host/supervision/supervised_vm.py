"""What the supervisor keeps of one virtual machine: the connection, the journal, and the files that it names.

It reads none of the files and none of the connection; it sends replies, so that each is sent once whatever becomes of
the worker.
"""

import array
import asyncio
import os
import socket
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.supervision.packets import (
    FILES_MAX,
    Kind,
    Legacy,
    Packet,
    Piece,
    split_kept,
    split_length,
    split_number,
    with_length,
)
from protocol.process.peer_process import peer_process

REPLY_TIMEOUT: Final = 10.0
"""Seconds that the front-end has to read its replies, as in a daemon of one process."""


class SupervisedVm:
    """Virtual machine ``number``, whose connection ``sock`` is owned here, and which finds ``device``."""

    def __init__(self, number: int, sock: socket.socket, device: DeviceOptions = DEFAULT_DEVICE) -> None:
        self.number = number
        self._device = device.build()
        self.quick_ends = 0.0
        """How many workers that had this machine have ended soon after they began, in a row."""
        self.is_served = False
        """Whether the worker that has it at present has said so."""
        self._socket = sock
        self.process = peer_process(sock).pid
        """The process that connected, by number."""
        self._journal = b""
        self._kept: set[int] = set()
        self._files: dict[int, int] = {}
        self._next_file = 0
        self._pieces: list[Piece] = []
        self._taken = True
        self._records: dict[int, int] = {}
        self._has_begun = False
        self._replies = asyncio.Lock()
        self.lasts = True
        """Whether the session can be taken over: all its files are here."""

    @property
    def connection(self) -> int:
        """The descriptor of its connection."""
        return self._socket.fileno()

    def came(self, packet: Packet) -> None:
        """Take in a PIECE."""
        self._has_begun = True
        self.lasts &= packet.complete
        unfit, data = split_length(packet.body)
        self._pieces.append(Piece(data, tuple(self._keep(packet.fds)), unfit.decode()))
        self._taken = False

    def _keep(self, fds: Iterable[int]) -> Iterator[int]:
        for fd in fds:
            self._files[self._next_file] = fd
            yield self._next_file
            self._next_file += 1

    def taken(self) -> None:
        """Take note that the last piece was taken from the connection."""
        self._taken = True

    def record(self, packet: Packet) -> None:
        """Take in a RECORD."""
        queue, _ = split_number(packet.body)
        self.lasts &= packet.complete
        for number in self._keep(packet.fds):
            self._records[queue] = number

    def handled(self, packet: Packet) -> bytes:
        """Take in HANDLED; return the reply."""
        self._pieces.clear()
        return self.changed(packet)

    def changed(self, packet: Packet) -> bytes:
        """Take in a new journal; return what comes with it."""
        journal, self._kept, reply = split_kept(packet.body)
        if journal:
            self._journal = journal
            self._records.clear()
        needed = self._needed()
        close_aside([self._files.pop(number) for number in [*self._files] if number not in needed])
        return reply

    def _needed(self) -> set[int]:
        return self._kept | set(self._records.values()) | {number for piece in self._pieces for number in piece.files}

    async def send_reply(self, data: bytes, fds: tuple[int, ...]) -> str:
        """Send a reply and close its descriptors. Return why that could not be done, "" if it was."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT), self._replies:
                await self._send(data, fds)
        except TimeoutError:
            return "front-end does not read its replies"
        except OSError as error:
            return f"front-end gone: {error.strerror}"
        finally:
            for fd in fds:
                os.close(fd)
        return ""

    async def _send(self, data: bytes, fds: tuple[int, ...]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        loop = asyncio.get_running_loop()
        while data:
            try:
                data = data[self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                ancillary = []
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self._socket.fileno(), room.set)
                try:
                    await room.wait()
                finally:
                    loop.remove_writer(self._socket.fileno())

    def hand_over(self) -> Iterator[Packet]:
        """Yield what another worker needs to go on. The descriptors stay here."""
        if not self._has_begun:
            yield Packet(Kind.ATTACH, self.number, self._device, (self._socket.fileno(),))
            return
        needed = self._needed()
        numbers = [number for number in self._files if number in needed]
        for at in range(0, len(numbers), FILES_MAX):
            some = numbers[at : at + FILES_MAX]
            body = repr(some).encode()
            yield Packet(Kind.FILES, self.number, body, tuple(self._files[number] for number in some))
        legacy = Legacy(
            journal=self._journal,
            pieces=tuple(self._pieces),
            taken=self._taken,
            records=self._records,
            next_file=self._next_file,
        )
        body = with_length(self._device, legacy.build())
        yield Packet(Kind.TAKE_OVER, self.number, body, (self._socket.fileno(),))

    def close(self) -> None:
        """Forget the machine. Its connection is closed here too."""
        files, self._files = list(self._files.values()), {}
        close_aside(files)
        self._socket.close()


def close_aside(fds: Iterable[int]) -> None:
    """Close files of a session. A socket is closed on a thread: it may be the last to hold what was sent through it, of
    which a worker has seen nothing."""
    sockets = []
    for fd in fds:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sockets.append(fd)
        else:
            os.close(fd)
    if sockets:
        threading.Thread(target=_close_all, args=(sockets,), daemon=True, name="closing").start()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
