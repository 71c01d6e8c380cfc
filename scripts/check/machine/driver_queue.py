"""One virtqueue of the machine: its place in the memory, its driver's half, and its ring as bare fields."""

from collections.abc import Callable, Sequence
from typing import Final

from guest.virtqueue.split_virtqueue import SplitDriverVirtqueue
from guest.virtqueue.virtqueue import Buffer, IndirectTables, UsedBuffer
from guest.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VirtqueueError
from protocol.memory import PAGE_SIZE
from protocol.packed_ring import PackedRing
from protocol.ring_formats import RingLayout
from protocol.split_ring import DESCRIPTOR, SplitRing
from protocol.virtio import FeatureBit, has_feature
from protocol.virtio_balloon import BalloonQueue
from scripts.check.machine.deadline import DEADLINE, becomes_true, stays_true
from scripts.check.machine.memory_file import (
    BUFFERS_AT,
    BUFFERS_STRIDE,
    RING_STRIDE,
    RINGS_AT,
    TABLES_AT,
    TABLES_STRIDE,
    MemoryFile,
)
from scripts.check.recording.offered_chain import read_offered
from scripts.check.recording.recorder import Recorder
from scripts.check.verdict import NotReturned

TABLES: Final = TABLES_STRIDE // PAGE_SIZE
TABLE_ENTRIES: Final = PAGE_SIZE // 16


class DriverQueue:
    """A virtqueue as its driver has it.

    ``driver`` is the well-behaved driver's half. ``ring`` are the bare fields, for a driver that is not: see
    :mod:`scripts.check.machine.raw_ring`. ``send_kick`` and ``take_interrupt`` are the target's ways to notify and to
    be notified; the latter returns whether there was an interrupt since it was last called. ``recorder`` is told of
    chains and of used buffers.
    """

    def __init__(
        self,
        memory: MemoryFile,
        guest_base: int,
        index: int,
        kind: BalloonQueue | None,
        layout: RingLayout,
        features: int,
        *,
        send_kick: Callable[[], None],
        take_interrupt: Callable[[], bool],
        recorder: Recorder | None = None,
    ) -> None:
        self.index = index
        self.kind = kind
        self.layout = layout
        self.kick: Callable[[], None] = send_kick
        self.take_interrupt: Callable[[], bool] = take_interrupt
        self.event_idx = has_feature(features, FeatureBit.RING_EVENT_IDX)
        self._memory = memory
        self._guest_base = guest_base
        self._features = features
        self._recorder = recorder
        self._renew()

    def _renew(self) -> None:
        start = self.place
        self._memory.write(start, bytes(self.layout.bytes))
        parts = (self._memory.view[start + at :] for at in self.layout.offsets)
        self.ring = self.layout.open(*parts)
        tables = tuple(self._guest_base + self.tables + PAGE_SIZE * number for number in range(TABLES))
        indirect = has_feature(self._features, FeatureBit.RING_INDIRECT_DESC)
        self.driver = open_virtqueue(
            self.ring,
            event_idx=self.event_idx,
            tables=IndirectTables(addresses=tables, capacity=TABLE_ENTRIES) if indirect else None,
            write_guest=lambda address, data: self._memory.write(address - self._guest_base, data),
            in_order=has_feature(self._features, FeatureBit.IN_ORDER),
        )
        self._next_place = self._noted = 0

    def renew(self) -> None:
        """Begin anew with a zeroed ring and a fresh driver's half, as after a reset."""
        self.ring.release()
        self._renew()

    def begin_at(self, index: int) -> None:
        """Have a split ring that is stopped and empty go on at ``index``, as one that has served so many buffers."""
        assert isinstance(self.driver, SplitDriverVirtqueue)
        self.split.avail[1] = self.split.used[1] = index
        self.driver.skip_to(index)

    # -- places -----------------------------------------------------------------------------------------------------

    @property
    def place(self) -> int:
        """Offset of the ring in the memory."""
        return RINGS_AT + RING_STRIDE * self.index

    @property
    def tables(self) -> int:
        """Offset of the queue's indirect tables in the memory."""
        return TABLES_AT + TABLES_STRIDE * self.index

    @property
    def buffers(self) -> int:
        """Offset of the place for what the device is to read: page frame numbers, statistics, command ids."""
        return BUFFERS_AT + BUFFERS_STRIDE * self.index

    @property
    def split(self) -> SplitRing:
        """The bare fields of a split ring."""
        assert isinstance(self.ring, SplitRing)
        return self.ring

    @property
    def packed(self) -> PackedRing:
        """The bare fields of a packed ring."""
        assert isinstance(self.ring, PackedRing)
        return self.ring

    @property
    def indices(self) -> str:
        """The indices of a split ring, in words."""
        return f"avail.idx is {self.split.avail[1]}, used.idx {self.split.used[1]}"

    def descriptor_bytes(self, number: int) -> bytes:
        """Return the 16 bytes of a descriptor of the ring."""
        return self._memory.read(self.place + self.layout.offsets[0] + DESCRIPTOR.size * number, DESCRIPTOR.size)

    # -- the well-behaved driver ------------------------------------------------------------------------------------

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make buffers (guest address, bytes) available without a kick, and return the head."""
        head = self.driver.add(readable, writable)
        self.note_offered(head)
        return head

    def offer(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make buffers (guest address, bytes) available, kick if the device asks for it, and return the head."""
        head = self.add(readable, writable)
        if self.driver.needs_kick():
            self.kick()
        return head

    def offer_data(self, data: bytes, writable: Sequence[Buffer] = ()) -> int:
        """Make ``data`` available for the device to read, then ``writable`` buffers, and kick. Return the head."""
        self._memory.write(self.buffers, data)
        return self.offer([(self._guest_base + self.buffers, len(data))], writable)

    def take_used(self) -> UsedBuffer | None:
        """Return the next buffer that the device gave back, or None.

        Raises:
            NotReturned: the device broke a rule of the ring.
        """
        try:
            used = self.driver.get_used()
        except VirtqueueError as error:
            raise NotReturned(f"queue {self.index}: {error}", self._returned) from error
        if used is not None and self._recorder is not None:
            self._recorder.used(self.index, used.head, used.length)
        return used

    def collect(self, count: int = 1, seconds: float = DEADLINE) -> list[UsedBuffer]:
        """Return ``count`` buffers that the device gives back within ``seconds``, looking at the ring alone.

        Raises:
            NotReturned: fewer come in time, or the device breaks a rule of the ring.
        """
        found: list[UsedBuffer] = []

        def complete() -> bool:
            used = self.take_used()
            if used is not None:
                found.append(used)
            return len(found) == count

        if not becomes_true(complete, seconds):
            raise NotReturned(
                f"queue {self.index} ({self.words}): {len(found)} of {count} buffers came back within {seconds:g} s"
                f"{'' if self.layout.packed else f', {self.indices}'}",
                self._returned,
            )
        return found

    def gives_nothing_back(self, seconds: float = 0.2) -> bool:
        """Return whether no buffer comes back for ``seconds``."""
        return stays_true(lambda: self.take_used() is None, seconds)

    def is_interrupted(self, seconds: float = DEADLINE) -> bool:
        """Return whether the device interrupts within ``seconds``, or has done so since the last look."""
        return becomes_true(self.take_interrupt, seconds)

    # -- what is recorded -------------------------------------------------------------------------------------------

    def note_started(self, base: int) -> None:
        """Record that the queue is served from ``base`` on."""
        if self._recorder is not None:
            self._recorder.ring_started(
                self.index,
                "" if self.kind is None else self.kind.value,
                self.layout.size,
                packed=self.layout.packed,
                base=base,
                event_idx=self.event_idx,
                indirect_desc=has_feature(self._features, FeatureBit.RING_INDIRECT_DESC),
                in_order=has_feature(self._features, FeatureBit.IN_ORDER),
            )

    def note_offered(self, head: int) -> None:
        """Record the chain with ``head``, which was made available last; nothing without a recording."""
        if self._recorder is None:
            return
        chain = read_offered(self.ring, self._next_place if self.layout.packed else head, self._read_guest)
        self._next_place = (self._next_place + len(chain.descriptors)) % self.layout.size
        name = "" if self.kind is None else self.kind.value
        held = self.kind is BalloonQueue.STATS
        self._recorder.offered(
            self.index, name, head, chain.descriptors, table=chain.table, indirect=chain.indirect, held=held
        )

    def note_used_raw(self, elements: Sequence[tuple[int, int]]) -> None:
        """Record used elements (head, length) of a fresh ring that were seen there; those before are the same."""
        if self._recorder is not None:
            for head, length in elements[self._noted :]:
                self._recorder.used(self.index, head, length)
        self._noted = max(self._noted, len(elements))

    @property
    def _returned(self) -> str:
        # The clause by which each buffer comes back.
        return "P-16" if self.layout.packed else "S-17"

    def _read_guest(self, address: int, length: int) -> bytes:
        offset = address - self._guest_base
        return self._memory.read(offset, length) if 0 <= offset < self._memory.size else b""

    @property
    def words(self) -> str:
        """What the queue carries."""
        return "no role" if self.kind is None else self.kind.value

    def close(self) -> None:
        """Give the views of the ring up."""
        self.ring.release()
