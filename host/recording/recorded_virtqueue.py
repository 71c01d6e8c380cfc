"""A device's virtqueue that records its chains: as they were read, what became of them, and how they were given back.

The ring's own records are made where the ring is served, on a worker.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain as concatenate
from itertools import islice
from typing import Final

from host.balloon.virtio_balloon import Outcome
from host.memory.discard_plan import DiscardPlan, Refusal
from host.recording.recorded_ring import RecordedPackedRing, RecordedRing, RecordedSplitRing
from host.ring.opened_ring import OpenQueue
from host.vhost_user.actions import StartRing
from host.virtqueue.virtqueue import CHAIN_MAX, Chain, OnWrite, ReadGuest
from protocol.errors import VirtqueueError
from protocol.memory import FileRange
from protocol.packed_ring import PACKED_DESCRIPTOR, PackedRing
from protocol.recording.notification import is_call_due
from protocol.recording.records import DISCARDED, PutBack, RangeFate, Record, RecordedDescriptor, TakenChain, UsedChain
from protocol.ring_formats import Ring
from protocol.split_ring import DESCRIPTOR
from protocol.virtio_ring import DESCRIPTOR_SIZE

PARTS_MAX: Final = 4096
"""Most descriptors, and most ranges, of one chain that are recorded. Both can be tens of thousands; the chain of a
driver that is well has far fewer."""


@dataclass(frozen=True, slots=True)
class RingRecorder:
    """Where the records of a ring go, and what they need: ``guest_of`` gives the guest address of a file range."""

    session: int
    write: Callable[[Record], None]
    guest_of: Callable[[FileRange], int]


class RecordedVirtqueue:
    """A :class:`DeviceVirtqueue` around that which ``open_queue`` opens as ``action`` says.

    Raises:
        VhostUserError: as ``open_queue`` does.
    """

    def __init__(
        self, recorder: RingRecorder, open_queue: OpenQueue, action: StartRing, ring: Ring, read_guest: ReadGuest
    ) -> None:
        self._recorder = recorder
        self._index = action.index
        self._name = "" if action.queue is None else action.queue.value
        self._features = action.features
        self._ring: RecordedRing = RecordedPackedRing(ring) if isinstance(ring, PackedRing) else RecordedSplitRing(ring)
        self._read_guest = read_guest
        self._table: tuple[int, bytes] | None = None
        self._began = 0.0
        self._in_hand: Chain | None = None
        self._held: set[int] = set()
        self._used: list[tuple[int, int]] = []
        self._queue = open_queue(action, self._ring, self._read_table)
        self._told = self._used_position

    def _read_table(self, address: int, length: int) -> bytes:
        data = self._read_guest(address, length)
        self._table = (address, data)
        return data

    @property
    def on_write(self) -> OnWrite | None:
        """Called after every store into the ring."""
        return self._queue.on_write

    @on_write.setter
    def on_write(self, on_write: OnWrite | None) -> None:
        self._queue.on_write = on_write

    @property
    def base(self) -> int:
        """Where the queue goes on, see :attr:`DeviceVirtqueue.base`."""
        return self._queue.base

    @property
    def token(self) -> int:
        """The ring as the device leaves it, see :attr:`DeviceVirtqueue.token`."""
        return self._queue.token

    def is_as_left(self, token: int) -> bool:
        """Return whether the ring was still as ``token`` says when this device's side was made."""
        return self._queue.is_as_left(token)

    def pop(self, longest: int = CHAIN_MAX) -> Chain | None:
        """Take the next available chain, or return None if the ring is empty.

        Raises:
            LongChain: see :meth:`DeviceVirtqueue.pop`. Nothing is recorded.
            VirtqueueError: the ring breaks a rule. What was read of the chain is recorded.
        """
        self._ring.reads.clear()
        self._table = None
        self._began = time.monotonic()
        try:
            self._in_hand = self._queue.pop(longest)
        except VirtqueueError as error:
            if self._ring.reads:
                self._write_chain(self._ring.reads[0].place, note=f"not a chain: {error}")
            raise
        return self._in_hand

    def unpop(self, chain: Chain) -> None:
        """Put back ``chain``, the one that was taken last: it will be taken again."""
        self._queue.unpop(chain)
        self._in_hand = None
        if chain.head in self._held:
            self._held.discard(chain.head)
            self._write(PutBack(t=time.monotonic(), session=self._recorder.session, ring=self._index, head=chain.head))

    def observe(self, chain: Chain, outcome: Outcome) -> None:
        """Record ``chain``, which was taken last: ``outcome`` was carried out, and it is to be given back or held."""
        self._in_hand = None
        if outcome.hold:
            self._held.add(chain.head)
        fates = self._fates(outcome.plan)
        ranges = tuple(islice(fates, PARTS_MAX))
        self._write_chain(chain.head, _note(outcome), ranges, sum(1 for _ in fates), held=outcome.hold)

    def abandon(self) -> None:
        """Record the chain in hand, if there is one: serving it failed."""
        if self._in_hand is not None:
            self._write_chain(self._in_hand.head, note="not served")
            self._in_hand = None

    def add_used(self, head: int, length: int) -> None:
        """Give chain ``head`` back; ``length`` bytes of it were written by the device."""
        self._queue.add_used(head, length)
        self._held.discard(head)
        self._used.append((head, length))

    def needs_notification(self) -> bool:
        """Return whether the driver has to be told about the used entries since this was last asked, and record
        these."""
        old, new = self._told, self._used_position
        event, flags = self._wish()
        due = self._queue.needs_notification()
        if due != self._is_due(old, new, event, flags):
            event, flags = self._wish()  # the driver has changed it in between
        self._told = new
        used, self._used = self._used, []
        for head, length in used:
            self._write(
                UsedChain(
                    t=time.monotonic(),
                    session=self._recorder.session,
                    ring=self._index,
                    head=head,
                    length=length,
                    call=due,
                    old=old,
                    new=new,
                    event=event,
                    flags=flags,
                )
            )
        return due

    def enable_notification(self) -> bool:
        """Ask for a kick when the next chain becomes available. Return True if one already has: then go on popping."""
        return self._queue.enable_notification()

    @property
    def _used_position(self) -> int:
        return self._queue.base >> 16 if isinstance(self._ring, RecordedPackedRing) else self._ring.used[1]

    def _wish(self) -> tuple[int, int]:
        # The driver's event and flags, -1 for what counts nothing here.
        ring = self._ring
        if isinstance(ring, RecordedPackedRing):
            return ring.driver_event[0], -1
        return (ring.avail[ring.used_event_at], -1) if self._features.event_idx else (-1, ring.avail[0])

    def _is_due(self, old: int, new: int, event: int, flags: int) -> bool:
        packed, size = self._features.packed, self._ring.size
        event_idx = self._features.event_idx
        return is_call_due(packed=packed, event_idx=event_idx, size=size, old=old, new=new, event=event, flags=flags)

    def _fates(self, plan: DiscardPlan) -> Iterator[RangeFate]:
        failed = {(address, length) for reason, address, length in plan.refused if reason is Refusal.DISCARD_FAILED}
        guest_of = self._recorder.guest_of
        discards = (RangeFate(guest_of(place), place.length, DISCARDED) for place in plan.discards)
        done = (fate for fate in discards if (fate.address, fate.length) not in failed)
        kept = (RangeFate(address, length, reason.value) for reason, address, length in plan.refused)
        return concatenate(done, kept)

    def _write_chain(
        self, head: int, note: str, ranges: tuple[RangeFate, ...] = (), left_out: int = 0, *, held: bool = False
    ) -> None:
        reads = self._ring.reads
        table = self._indirect()
        now = time.monotonic()
        self._write(
            TakenChain(
                t=self._began,
                session=self._recorder.session,
                ring=self._index,
                queue=self._name,
                head=head,
                descriptors=tuple(reads[:PARTS_MAX]),
                table=() if self._table is None else (self._table[0], len(self._table[1])),
                indirect=tuple(table[:PARTS_MAX]),
                left_out=max(0, len(reads) - PARTS_MAX) + max(0, len(table) - PARTS_MAX),
                ranges=ranges,
                ranges_left_out=left_out,
                held=held,
                note=note,
                seconds=now - self._began,
            )
        )

    def _indirect(self) -> list[RecordedDescriptor]:
        if self._table is None:
            return []
        data = self._table[1]
        whole = data[: len(data) // DESCRIPTOR_SIZE * DESCRIPTOR_SIZE]
        if isinstance(self._ring, RecordedPackedRing):
            rows = enumerate(PACKED_DESCRIPTOR.iter_unpack(whole))
            return [RecordedDescriptor(place, row[0], row[1], row[3], row[2]) for place, row in rows]
        return [RecordedDescriptor(place, *row) for place, row in enumerate(DESCRIPTOR.iter_unpack(whole))]

    def _write(self, record: Record) -> None:
        self._recorder.write(record)


def _note(outcome: Outcome) -> str:
    words = []
    if outcome.pages:
        words.append(f"{outcome.pages} page frame numbers")
    if outcome.command_id is not None:
        words.append(f"command id {outcome.command_id}")
    if outcome.statistics is not None:
        words.append(f"{len(outcome.statistics.values)} statistics")
        if outcome.statistics.unknown:
            words.append(f"{outcome.statistics.unknown} with unknown tags")
    return ", ".join(words)
