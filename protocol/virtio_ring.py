"""The split virtqueue as bytes: layout, descriptor codec, index arithmetic, and the one fence.

Source: virtio 1.2, 2.7 (split virtqueues) and 2.7.10 (event suppression). Both halves of a ring read and write it
through :class:`SplitRing`; who may write which field is theirs to know.

**Shared memory rules.** Ring fields are single aligned loads and stores through a ``memoryview.cast`` view.
``struct.pack_into`` never touches a field that the other side may be reading: it stores zeros first. Descriptors are
read as one copy of 16 bytes and judged by that copy only.

Must not know: mappings, guest memory, what a buffer means.
"""

import platform
import struct
import sys
import threading
from typing import Final, NamedTuple

from protocol.errors import UsageError, VirtqueueError

QUEUE_SIZE_MAX: Final = 32768
"""virtio 1.2, 2.7: "Queue Size value is always a power of 2. The maximum Queue Size value is 32768." """

DESCRIPTOR_SIZE: Final = 16
DESCRIPTOR_TABLE_ALIGN: Final = 16
AVAIL_RING_ALIGN: Final = 2
USED_RING_ALIGN: Final = 4

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4

VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""``le64 addr, le32 len, le16 flags, le16 next`` (virtio 1.2, 2.7.5)."""

assert DESCRIPTOR.size == DESCRIPTOR_SIZE


class Descriptor(NamedTuple):
    """One descriptor: ``length`` bytes at guest address ``address``."""

    address: int
    length: int
    flags: int
    next: int


def descriptor_table_bytes(size: int) -> int:
    """Return the bytes of a descriptor table of ``size`` entries."""
    return DESCRIPTOR_SIZE * size


def avail_ring_bytes(size: int) -> int:
    """Return the bytes of an available ring of ``size`` entries: flags, idx, ring, used_event, two bytes each."""
    return 2 * (2 + size + 1)


def used_ring_bytes(size: int) -> int:
    """Return the bytes of a used ring of ``size`` entries: flags, idx (2 each), elements (8), avail_event (2)."""
    return 2 * 2 + 8 * size + 2


def check_queue_size(size: int) -> None:
    """Raise :class:`VirtqueueError` unless ``size`` is a power of two from 1 to 32768 (virtio 1.2, 2.7)."""
    if not 1 <= size <= QUEUE_SIZE_MAX or size & (size - 1):
        raise VirtqueueError(f"queue size {size} is not a power of two from 1 to {QUEUE_SIZE_MAX}")


def ring_delta(new: int, old: int) -> int:
    """Return how far the 16-bit index ``new`` is ahead of ``old``."""
    return (new - old) & 0xFFFF


def needs_event(event: int, new: int, old: int) -> bool:
    """Return whether moving an index from ``old`` to ``new`` passes ``event``, so that the other side is to be told.

    All three are 16-bit indices. virtio 1.2, 2.7.10.1 and 2.7.7.2: notify when the index just stepped over the event.
    """
    return ring_delta(new, (event + 1) & 0xFFFF) < ring_delta(new, old)


def refuse_big_endian() -> None:
    """Raise :class:`UsageError` on a big-endian machine: the views of :class:`SplitRing` use native byte order."""
    if sys.byteorder != "little":
        raise UsageError("vhost-user-balloon runs on little-endian machines only")


_fence_lock = threading.Lock()


def full_fence() -> None:
    """Order every earlier store before every later load, as seen by a process on another processor.

    This is the store-then-load order that event suppression needs, and that no processor gives by itself: publish an
    index, *then* look whether the other side went to sleep. Taking and releasing a lock is a locked read-modify-write
    on x86-64, a full barrier at once. On AArch64 acquire and release alone let the store sink below the load; a
    release followed by a second acquire of the same lock does not, hence the pair is done twice.
    """
    with _fence_lock:
        pass
    with _fence_lock:
        pass


_ACCESSES_KEEP_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")


def order_accesses() -> None:
    """Keep loads behind earlier loads and stores behind earlier stores, as seen by another processor.

    Needed between an index and the entries that it publishes, on both sides. x86 keeps these orders by itself, so there
    it costs nothing; elsewhere it is :func:`full_fence`.
    """
    if not _ACCESSES_KEEP_ORDER:
        full_fence()


class SplitRing:
    """Views of the three parts of one split virtqueue.

    ``desc``, ``avail`` and ``used`` are writable byte views of at least :func:`descriptor_table_bytes`,
    :func:`avail_ring_bytes` and :func:`used_ring_bytes`, aligned as virtio 1.2, 2.7 demands.

    Field places inside the 16-bit views: avail is ``flags, idx, ring[size], used_event``; used begins with
    ``flags, idx`` and ends with ``avail_event``; its elements are pairs of 32-bit words behind the first word.
    """

    __slots__ = ("avail", "avail_event_at", "desc", "size", "used", "used_elements", "used_event_at")

    def __init__(self, size: int, desc: memoryview, avail: memoryview, used: memoryview) -> None:
        check_queue_size(size)
        self.size = size
        self.desc = desc[: descriptor_table_bytes(size)]
        self.avail = avail[: avail_ring_bytes(size)].cast("H")
        self.used = used[: used_ring_bytes(size)].cast("H")
        self.used_elements = used[: 4 + 8 * size].cast("I")
        self.used_event_at = 2 + size
        self.avail_event_at = 2 + 4 * size

    def read_descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Return one copy of descriptor ``index``: address, length, flags, next."""
        return DESCRIPTOR.unpack_from(self.desc, index * DESCRIPTOR_SIZE)

    def write_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Store descriptor ``index``. Only the driver may, and only while the device cannot reach it."""
        at = index * DESCRIPTOR_SIZE
        self.desc[at : at + DESCRIPTOR_SIZE] = DESCRIPTOR.pack(*descriptor)

    def release(self) -> None:
        """Give up all views, so that the mapping below may be closed. The ring cannot be used afterwards."""
        for view in (self.desc, self.avail, self.used, self.used_elements):
            view.release()
