"""Faults in how a device handles its rings."""

import time
from typing import Any

from host.vhost_user import ring_control
from host.virtqueue.packed_virtqueue import PackedDeviceVirtqueue as Packed
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue as Split
from host.virtqueue.virtqueue import Chain
from protocol.errors import VirtqueueError
from protocol.packed_ring import AVAIL_USED
from protocol.process.memory_fence import order_accesses
from protocol.split_ring import VIRTQ_USED_F_NO_NOTIFY, Descriptor
from protocol.virtio_ring import VIRTQ_DESC_F_WRITE
from scripts.check.broken.fault import fault, replaced

BOTH_EXACT = ("report-exact/split", "report-exact/packed")


def _used(change: Any) -> None:
    # Have `change(head, length)` say what both formats give back.
    for virtqueue in (Split, Packed):

        def make(original: Any) -> Any:
            def write_used(self: Any, head: int, length: int) -> None:
                original(self, *change(head, length))

            return write_used

        replaced(virtqueue, "_write_used", make)


@fault("used-length-one", caught_by=BOTH_EXACT)
def _() -> None:
    """The used length of every buffer is 1, although nothing was written."""
    _used(lambda head, length: (head, 1))


@fault("used-length-page", caught_by=BOTH_EXACT)
def _() -> None:
    """The used length of every buffer is that of one page."""
    _used(lambda head, length: (head, 4096))


@fault("used-length-all-ones", caught_by=BOTH_EXACT)
def _() -> None:
    """The used length is -1, as of an error."""
    _used(lambda head, length: (head, 0xFFFF_FFFF))


@fault("used-head-next", caught_by=("report-exact/split",))
def _() -> None:
    """The used element names the descriptor after the head."""
    replaced(Split, "_write_used", lambda original: lambda self, head, length: original(self, head + 1, length))


@fault("used-head-zero", caught_by=("split-heads-anywhere",))
def _() -> None:
    """The used element always names descriptor 0."""
    replaced(Split, "_write_used", lambda original: lambda self, head, length: original(self, 0, length))


@fault("used-twice", caught_by=("report-many-rounds/split",))
def _() -> None:
    """Every tenth buffer is given back twice."""
    count = [0]

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            count[0] += 1
            original(self, head, length)
            if count[0] % 10 == 0:
                original(self, head, length)

        return write_used

    replaced(Split, "_write_used", make)


@fault("used-lost", caught_by=("report-many-rounds/split", "report-many-rounds/packed"))
def _() -> None:
    """Every twentieth buffer is not given back."""
    for virtqueue in (Split, Packed):
        count = [0]

        def make(original: Any, count: list[int] = count) -> Any:
            def add_used(self: Any, head: int, length: int) -> None:
                count[0] += 1
                if count[0] % 20:
                    original(self, head, length)

            return add_used

        replaced(virtqueue, "add_used", make)


@fault("available-ring-written", caught_by=("chain-table-unwritten/split",))
def _() -> None:
    """The device marks an entry of the available ring when it has used its buffer."""

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            slot = self.next_used & self._mask
            original(self, head, length)
            self._ring.avail[2 + slot] = 0xFFFF

        return write_used

    replaced(Split, "_write_used", make)


@fault("used-index-by-two", caught_by=("report-many-rounds/split",))
def _() -> None:
    """The used index moves by two."""

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            original(self, head, length)
            self.next_used = (self.next_used + 1) & 0xFFFF
            self._ring.used[1] = self.next_used

        return write_used

    replaced(Split, "_write_used", make)


@fault("used-index-before-element", caught_by=("used-ring-as-watched/split",))
def _() -> None:
    """The used index is stored before the element that it publishes."""

    def write_used(self: Any, head: int, length: int) -> None:
        slot = self.next_used & self._mask
        self.next_used = (self.next_used + 1) & 0xFFFF
        self._ring.used[1] = self.next_used
        time.sleep(0)
        order_accesses()
        self._ring.used_elements[1 + 2 * slot] = head
        self._ring.used_elements[2 + 2 * slot] = length

    replaced(Split, "_write_used", lambda original: write_used)


@fault("used-flags-before-id", caught_by=("used-ring-as-watched/packed",))
def _() -> None:
    """The flags of a used descriptor are stored before its length."""

    def make(original: Any) -> Any:
        def write_used(self: Any, buffer_id: int, length: int) -> None:
            at = self._next_used
            self._ring.halves[8 * at + 7] = self._used_bits
            time.sleep(0)
            original(self, buffer_id, length)

        return write_used

    replaced(Packed, "_write_used", make)


@fault("used-index-torn", caught_by=("used-ring-as-watched/split",))
def _() -> None:
    """The used index is zeroed for a moment before it is stored, as struct.pack_into does."""

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            self._ring.used[1] = 0
            time.sleep(0)
            original(self, head, length)

        return write_used

    replaced(Split, "_write_used", make)


@fault("packed-id-is-place", caught_by=("packed-any-buffer-id",))
def _() -> None:
    """The used descriptor has its own place for an id."""

    def make(original: Any) -> Any:
        def write_used(self: Any, buffer_id: int, length: int) -> None:
            at = self._next_used
            original(self, buffer_id, length)
            self._ring.halves[8 * at + 6] = at

        return write_used

    replaced(Packed, "_write_used", make)


@fault("packed-wrap-not-flipped", caught_by=("report-many-rounds/packed",))
def _() -> None:
    """The wrap counter of used descriptors stays as it is at the end of the ring."""

    def make(original: Any) -> Any:
        def write_used(self: Any, buffer_id: int, length: int) -> None:
            original(self, buffer_id, length)
            self._used_bits = AVAIL_USED

        return write_used

    replaced(Packed, "_write_used", make)


@fault("packed-skips-one", caught_by=("packed-chain-over-the-end",))
def _() -> None:
    """After a list of descriptors the next used one follows at once, not after the list's length."""

    def make(original: Any) -> Any:
        def write_used(self: Any, buffer_id: int, length: int) -> None:
            self._slots_of[buffer_id] = 1
            original(self, buffer_id, length)

        return write_used

    replaced(Packed, "_write_used", make)


@fault("packed-takes-unavailable", caught_by=("packed-unavailable-untouched",))
def _() -> None:
    """A descriptor is used whatever its AVAIL bit says."""

    def make(original: Any) -> Any:
        def pop(self: Any, *rest: Any) -> Any:
            at = 8 * self._next_avail + 7
            if self._ring.words[4 * self._next_avail + 2]:
                self._ring.halves[at] = self._ring.halves[at] & ~AVAIL_USED | self._avail_bits
            return original(self, *rest)

        return pop

    replaced(Packed, "pop", make)


@fault("packed-claims-to-have-written", caught_by=("packed-write-flag-of-used",))
def _() -> None:
    """The used descriptor has WRITE and a length of 17."""
    replaced(Packed, "_write_used", lambda original: lambda self, head, length: original(self, head, 17))


@fault("no-interrupts", caught_by=("interrupt-for-each/split", "interrupt-for-each/packed"))
def _() -> None:
    """The driver is never interrupted."""
    for virtqueue in (Split, Packed):
        replaced(virtqueue, "needs_notification", lambda original: lambda self: False)


@fault("every-second-interrupt", caught_by=("interrupt-for-each/split", "interrupt-without-event-idx/packed"))
def _() -> None:
    """Every second interrupt is lost."""
    count = [0]

    def make(original: Any) -> Any:
        def needs_notification(self: Any) -> bool:
            count[0] += 1
            return bool(original(self)) and count[0] % 2 == 0

        return needs_notification

    for virtqueue in (Split, Packed):
        replaced(virtqueue, "needs_notification", make)


@fault("interrupts-always", caught_by=("interrupt-suppressed/split", "interrupt-when-crossed/packed"))
def _() -> None:
    """The driver is interrupted for every buffer, whatever it asked for."""
    for virtqueue in (Split, Packed):
        replaced(virtqueue, "needs_notification", lambda original: lambda self: True)


@fault("event-index-never", caught_by=("kick-asked-for-when-idle/split", "kick-only-when-asked/split"))
def _() -> None:
    """avail_event is never advanced: the second buffer is not kicked for."""

    def enable(self: Any) -> bool:
        return bool(self._ring.avail[1] != self.next_avail)

    replaced(Split, "enable_notification", lambda original: enable)


@fault("event-index-ahead", caught_by=("kick-asked-for-when-idle/split",))
def _() -> None:
    """avail_event is one too high: every second buffer is not kicked for."""

    def make(original: Any) -> Any:
        def enable(self: Any) -> bool:
            more = bool(original(self))
            self._ring.used[self._ring.avail_event_at] = (self.next_avail + 1) & 0xFFFF
            return more

        return enable

    replaced(Split, "enable_notification", make)


@fault("packed-event-disabled", caught_by=("kick-asked-for-when-idle/packed",))
def _() -> None:
    """The device event area says that no kick is wanted, and keeps saying so."""

    def make(original: Any) -> Any:
        def enable(self: Any) -> bool:
            more = bool(original(self))
            self._ring.device_event[0] = 1 << 16
            return more

        return enable

    replaced(Packed, "enable_notification", make)


@fault("used-flags-with-event-idx", caught_by=("used-flags-with-event-idx/split",))
def _() -> None:
    """used.flags is 1 while a buffer is in hand, with EVENT_IDX too."""

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            self._ring.used[0] = VIRTQ_USED_F_NO_NOTIFY
            original(self, head, length)

        return write_used

    replaced(Split, "_write_used", make)


@fault("descriptor-cleared", caught_by=("chain-table-unwritten/split",))
def _() -> None:
    """The device clears a descriptor after it has used it."""

    def make(original: Any) -> Any:
        def write_used(self: Any, head: int, length: int) -> None:
            self._ring.write_descriptor(head, Descriptor(0, 0, 0, 0))
            original(self, head, length)

        return write_used

    replaced(Split, "_write_used", make)


@fault("indirect-write-flag-obeyed", caught_by=("chain-indirect-write-flag/split",))
def _() -> None:
    """A table that is named by a descriptor with WRITE is refused."""

    def make(original: Any) -> Any:
        def read_chain(self: Any, head: int, *rest: Any) -> Any:
            flags = self._ring.read_descriptor(head)[2]
            if flags & 4 and flags & VIRTQ_DESC_F_WRITE:
                raise VirtqueueError("WRITE on an indirect descriptor")
            return original(self, head, *rest)

        return read_chain

    replaced(Split, "_read_chain", make)


@fault("indirect-at-head-only", caught_by=("split-direct-then-indirect",))
def _() -> None:
    """An indirect descriptor is understood at the head of a chain only."""

    def make(original: Any) -> Any:
        def read_chain(self: Any, head: int, *rest: Any) -> Any:
            _, _, flags, following = self._ring.read_descriptor(head)
            if flags & 1 and following < self._ring.size and self._ring.read_descriptor(following)[2] & 4:
                raise VirtqueueError("an indirect descriptor that is not the head")
            return original(self, head, *rest)

        return read_chain

    replaced(Split, "_read_chain", make)


@fault("indirect-without-negotiation", caught_by=("chain-indirect-not-negotiated/split",))
def _() -> None:
    """INDIRECT is not looked at where it was not negotiated: the table's bytes are discarded as a page."""

    def make(original: Any) -> Any:
        def read_chain(self: Any, head: int, *rest: Any) -> Any:
            if self._features.indirect_desc:
                return original(self, head, *rest)
            address = self._ring.read_descriptor(head)[0]
            return Chain(head, [], [(address & ~0xFFF, 4096)], None)

        return read_chain

    replaced(Split, "_read_chain", make)


@fault("first-of-table-only", caught_by=("chain-indirect-report/split", "report-exact/split"))
def _() -> None:
    """Of an indirect table only the first entry is looked at."""

    def make(original: Any) -> Any:
        def read_indirect(self: Any, address: int, length: int, readable: Any, writable: Any, *rest: Any) -> None:
            original(self, address, length, readable, writable, *rest)
            del writable[1:]

        return read_indirect

    replaced(Split, "_read_indirect", make)


@fault("broken-ring-in-silence", caught_by=("broken-ring-asks-for-reset",))
def _() -> None:
    """A ring that is broken is given up without DEVICE_NEEDS_RESET."""
    replaced(ring_control, "need_reset", lambda original: lambda session: ())
