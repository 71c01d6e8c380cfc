"""What the supervisor keeps of one virtual machine: the connection, the journal, and the files that it names.

It reads none of the files and none of the connection; it sends replies, so that each is sent once whatever becomes of
the worker.
"""

import array
import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator
from typing import Final

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.descriptors.closing import Closer
from host.supervision.descriptor_shares import DescriptorShares, Owner
from host.supervision.packets import (
    FILES_MAX,
    Kind,
    Legacy,
    Packet,
    PacketError,
    Piece,
    parse_legacy,
    split_kept,
    split_length,
    split_number,
    with_length,
)
from host.vhost_user.mem_slots import MEM_SLOTS
from host.vm_store.sent_once import SentAlready, sent_once
from host.vm_store.vm_record import VmRecord
from host.vm_store.vm_store import UNSTORED, VmStore
from protocol.message_limits import FDS_MAX, PAYLOAD_MAX
from protocol.process.peer_process import peer_process

REPLY_TIMEOUT: Final = 10.0
"""Seconds that the front-end has to read its replies, as in a daemon of one process."""

MESSAGE_MAX: Final = 2 * PAYLOAD_MAX
"""Most bytes of a message in hand, and of a reply: more than either has."""

VM_FILES_MAX: Final = MEM_SLOTS + FDS_MAX + 64
"""Most files of a session: its regions, a message in hand, and what its rings, log and channel have."""

REPLIES_MAX: Final = 16
"""Most replies on their way. A worker has one, and those that were killed have left theirs."""

QUEUES_MAX: Final = 256
"""Queues have smaller numbers (VHOST_USER_VRING_IDX_MASK)."""


SOON: Final = 0.25
"""Seconds within which the end of a worker counts as one at its start."""

AFTER_TAKEOVER: Final = 0.1
"""What the end of a worker counts that had taken over all that it was to serve: something else may kill them."""

TOO_MANY: Final = "its process or user has its share of the descriptors"

log = logging.getLogger(__name__)


class SupervisedVm:
    """Virtual machine ``number``, whose connection ``sock`` is owned here, and which finds ``device``."""

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        device: DeviceOptions = DEFAULT_DEVICE,
        shares: DescriptorShares | None = None,
    ) -> None:
        """Keep no files beyond ``shares``: a session whose files have no room ends with its worker."""
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
        peer = peer_process(sock)
        self.process = peer.pid
        """The process that connected, by number."""
        self._owner = Owner(peer.uid, peer.pid or -number)
        self._shares = shares
        self._closer = Closer()
        self._journal = b""
        self._kept: set[int] = set()
        self._files: dict[int, int] = {}
        self._next_file = 0
        self._pieces: list[Piece] = []
        self._taken = True
        self._records: dict[int, int] = {}
        self._has_begun = False
        self._replies = asyncio.Lock()
        self._replies_left = 0
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
    def has_begun(self) -> bool:
        """Whether a worker has seen a part of a message."""
        return self._has_begun

    @property
    def connection(self) -> int:
        """The descriptor of its connection."""
        return self._socket.fileno()

    def close_files(self, fds: Iterable[int]) -> None:
        """Close descriptors that came for it."""
        self._closer.close(fds)

    def came(self, packet: Packet) -> None:
        """Take in a PIECE. Raises :class:`PacketError`, as all of these do, before anything is taken in."""
        unfit, data = split_length(packet.body)
        if not data or len(data) + sum(len(piece.data) for piece in self._pieces) > MESSAGE_MAX:
            raise PacketError("a message without an end")
        why = unfit.decode(errors="replace")
        self._pieces.append(Piece(data, tuple(self._keep(packet)), why))
        self._has_begun = True
        self._taken = False

    def _keep(self, packet: Packet) -> Iterable[int]:
        # Returns the numbers of the files. Those that find no room have theirs, and the session does not last.
        count = len(packet.fds)
        if len(self._files) + self._closer.waiting + count > VM_FILES_MAX:
            raise PacketError("more files than a session has")
        self.lasts &= packet.complete
        numbers = range(self._next_file, self._next_file + count)
        self._next_file += count
        if self._shares is not None and not self._shares.take(self._owner, count):
            if self.lasts:
                log.warning("vm %d: its session would not outlive its worker: %s", self.number, TOO_MANY)
            self.lasts = False
            self._closer.close(packet.fds)
            return numbers
        for number, fd in zip(numbers, packet.fds, strict=True):
            self._store.add_file(number, fd, self._files)
            self._files[number] = fd
        return numbers

    def taken(self) -> None:
        """Take note that the last piece was taken from the connection."""
        self._taken = True

    def record(self, packet: Packet) -> None:
        """Take in a RECORD."""
        queue, _ = split_number(packet.body)
        if queue >= QUEUES_MAX or len(packet.fds) > 1:
            raise PacketError(f"the record of a queue {queue}")
        for number in self._keep(packet):
            self._records[queue] = number

    def handled(self, packet: Packet) -> bytes:
        """Take in HANDLED; return the reply."""
        journal, kept, reply = split_kept(packet.body)
        if packet.fds and not reply:
            raise PacketError("the descriptors of a reply, and no reply")
        if len(reply) > MESSAGE_MAX or self._replies_left >= REPLIES_MAX:
            raise PacketError("more replies than messages")
        self._change(journal, kept, ())
        self._replies_left += bool(reply)
        self._store.queue(reply)
        return reply

    def changed(self, packet: Packet) -> None:
        """Take in a new journal."""
        journal, kept, _ = split_kept(packet.body)
        self._change(journal, kept, self._pieces)

    def _change(self, journal: bytes, kept: set[int], pieces: Iterable[Piece]) -> None:
        if self.lasts and not kept <= self._files.keys():
            raise PacketError("a journal with files that have not come")
        self._kept = kept
        self._pieces = list(pieces)
        if journal:
            self._journal = journal
            self._records.clear()
        needed = self._needed()
        left_over = [number for number in self._files if number not in needed]
        self._store.remove_files(left_over)
        self._close([self._files.pop(number) for number in left_over])

    def _close(self, fds: Iterable[int]) -> None:
        fds = tuple(fds)
        if self._shares is not None:
            self._shares.give_back(self._owner, len(fds))
        self._closer.close(fds)

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
            self._replies_left = max(0, self._replies_left - 1)
            self._closer.close(fds)
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
        link. One that comes again, because the supervisor was killed in between, is sent if it was not."""
        if self._store.keeps and fds and not self._replies.locked():
            data = self._store.read_waiting()
            with contextlib.suppress(OSError):
                try:
                    with sent_once(fds) as files:
                        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
                        sent = self._socket.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except SentAlready:
                    sent = len(data)
                self._store.sent_otherwise(sent)

    async def _send_queued(self, fds: tuple[int, ...]) -> None:
        if fds and (data := self._store.read_waiting()):  # only sendmsg(2) sends descriptors
            with contextlib.suppress(SentAlready), sent_once(fds) as files:
                await self._send(data, files)
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
        if self._shares is not None and not self._shares.take(self._owner, len(files)):
            self.lasts = False
            self._shares = None

    def let_go(self) -> None:
        """Close what is open here; what is kept stays."""
        self._store.let_go()
        self._close(self._files.values())
        self._closer.close([self._socket.detach()])

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
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._closer.close([self._socket.detach()])  # it may hold what was sent and not read
        files, self._files = list(self._files.values()), {}
        self._close(files)
