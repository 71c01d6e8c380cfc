"""What the supervisor keeps of one virtual machine: the connection, the journal, and the files that it names.

It reads none of the files and none of the connection; it sends replies, so that each is sent once whatever becomes of
the worker.
"""

import array
import asyncio
import contextlib
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
    parse_legacy,
    split_kept,
    split_length,
    split_number,
    with_length,
)
from host.vm_store.vm_record import VmRecord
from host.vm_store.vm_store import UNSTORED, VmStore
from protocol.process.peer_process import peer_process

REPLY_TIMEOUT: Final = 10.0
"""Seconds that the front-end has to read its replies, as in a daemon of one process."""


SOON: Final = 0.25
"""Seconds within which the end of a worker counts as one at its start."""

AFTER_TAKEOVER: Final = 0.1
"""What the end of a worker counts that had taken over all that it was to serve: something else may kill them."""


class SupervisedVm:
    """Virtual machine ``number``, whose connection ``sock`` is owned here, and which finds ``device``."""

    def __init__(self, number: int, sock: socket.socket, device: DeviceOptions = DEFAULT_DEVICE) -> None:
        self.number = number
        self._device = device.build()
        self.link = ""
        """The way to the worker that it is with, by name; "" before the first."""
        self.alone = False
        """Whether it is to have a worker of its own."""
        self.quick_ends = 0.0
        """How many workers that had this machine have ended at their start, in a row; less of one that served it."""
        self.ends_in_a_row = 0
        """How many have, whether or not they served it."""
        self._served_since: float | None = None
        self._store: VmStore = UNSTORED
        self._packet = 0
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

    def served(self, now: float) -> None:
        """The worker that has it at present says so, at ``now`` (monotonic seconds)."""
        if self._served_since is None:
            self._served_since = now

    def left(self) -> None:
        """No worker has it at present."""
        self._served_since = None

    def worker_ended(self, now: float, began: float | None) -> None:
        """The worker that had it has ended, at ``now``. It had begun at ``began``, if it had: what a busy host takes to
        start it does not count, nor what it takes to take a session over."""
        served = self._served_since
        soon = began is None or now - (served or began) < SOON or (served is None and self._has_begun)
        weight = 1.0 if served is None else AFTER_TAKEOVER
        self.quick_ends = self.quick_ends + weight if soon else 0.0
        self.ends_in_a_row = self.ends_in_a_row + 1 if soon else 1
        self.left()

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
            self._store.add_file(self._next_file, fd, self._files)
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
        reply = self.changed(packet)
        self._store.queue(reply)
        return reply

    def changed(self, packet: Packet) -> bytes:
        """Take in a new journal; return what comes with it."""
        journal, self._kept, reply = split_kept(packet.body)
        if journal:
            self._journal = journal
            self._records.clear()
        needed = self._needed()
        left_over = [number for number in self._files if number not in needed]
        self._store.remove_files(left_over)
        close_aside([self._files.pop(number) for number in left_over])
        return reply

    def _needed(self) -> set[int]:
        return self._kept | set(self._records.values()) | {number for piece in self._pieces for number in piece.files}

    async def send_reply(self, data: bytes, fds: tuple[int, ...]) -> str:
        """Send a reply and close its descriptors. Return why that could not be done, "" if it was."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT), self._replies:
                await (self._send_queued(fds) if self._store.keeps else self._send(data, fds))
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
        while data:
            try:
                data = data[self._socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                ancillary = []
            except BlockingIOError:
                await self._room()

    def try_to_send(self, fds: tuple[int, ...]) -> None:
        """Send a reply that is queued, with its descriptors, if there is room: before its packet is taken off the
        link. A supervisor that is killed in between sends it once more, one that is killed before sends it late."""
        if self._store.keeps and fds and not self._replies.locked():
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            with contextlib.suppress(OSError):
                data = [self._store.read_waiting()]
                sent = self._socket.sendmsg(data, rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._store.sent_otherwise(sent)

    async def _send_queued(self, fds: tuple[int, ...]) -> None:
        if fds and (data := self._store.read_waiting()):  # only sendmsg(2) sends descriptors
            await self._send(data, fds)
            self._store.sent_otherwise(len(data))
        while self._store.waiting:
            try:
                self._store.send(self._socket)
            except BlockingIOError:
                await self._room()

    async def _room(self) -> None:
        room = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_writer(self._socket.fileno(), room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._socket.fileno())

    # -- what outlives this process ---------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Bytes of replies that have not been sent, of a machine that is kept."""
        return self._store.waiting

    def keep(self, store: VmStore) -> None:
        """Have ``store`` keep it beyond this process from now on."""
        self._keep_with(store)
        self.note(self.link, self._packet)
        store.add_connection(self._socket.fileno())

    def _keep_with(self, store: VmStore) -> None:
        self._store = store
        self._socket.setblocking(False)  # for sendfile(2), which has no flag for it

    def counts_already(self, link: str, packet: int) -> bool:
        """Return whether a packet that comes from ``link`` was taken in by an earlier supervisor."""
        return self.link == link and packet <= self._packet

    def is_with(self, link: str) -> None:
        """Take note which worker has it from now on."""
        self.link = link
        self.note(link, 0)

    def note(self, link: str, packet: int) -> None:
        """Have the machine go on from here if this process is killed: with all packets from ``link`` up to this one,
        unless it is with another worker by now."""
        if not self._store.keeps or self.link != link:
            return
        self._packet = packet
        self._store.write(
            VmRecord(
                number=self.number,
                device=self._device,
                alone=self.alone,
                link=self.link,
                packet=packet,
                has_begun=self._has_begun,
                lasts=self.lasts,
                kept=frozenset(self._kept),
                names=self._store.names,
                replies_end=self._store.replies_end,
                legacy=self._legacy().build(),
            )
        )

    def resume(self, record: VmRecord, files: dict[int, int], store: VmStore) -> None:
        """Go on from the record in ``store``, with the files that it names, by number."""
        self._keep_with(store)
        legacy = parse_legacy(record.legacy)
        self._device, self.alone = record.device, record.alone
        self.link, self._packet = record.link, record.packet
        self._has_begun, self.lasts, self._kept = record.has_begun, record.lasts, set(record.kept)
        self._journal, self._pieces, self._taken = legacy.journal, list(legacy.pieces), legacy.taken
        self._records, self._next_file = dict(legacy.records), legacy.next_file
        self._files = files

    def let_go(self) -> None:
        """Close what is open here; what is kept stays."""
        self._store.let_go()
        close_aside(self._files.values())
        self._socket.close()

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
        body = with_length(self._device, self._legacy().build())
        yield Packet(Kind.TAKE_OVER, self.number, body, (self._socket.fileno(),))

    def _legacy(self) -> Legacy:
        return Legacy(
            journal=self._journal,
            pieces=tuple(self._pieces),
            taken=self._taken,
            records=self._records,
            next_file=self._next_file,
        )

    def close(self) -> None:
        """Forget the machine. Its connection is closed here too."""
        self._store.close()
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
