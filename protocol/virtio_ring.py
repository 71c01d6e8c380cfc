"""The common part of both formats of a virtqueue: sizes, descriptor flags and index arithmetic.

Source: virtio 1.2, 2.7 (split virtqueues) and 2.8 (packed virtqueues). The formats themselves are
:mod:`protocol.split_ring` and :mod:`protocol.packed_ring`.

**Shared memory rules.** Ring fields are single aligned loads and stores through a ``memoryview.cast`` view.
``struct.pack_into`` never touches a field that the other side may be reading: it stores zeros first. Descriptors are
copied once, as 16 bytes, and only the copy is validated and used.
"""

import sys
from typing import Final

from protocol.errors import BalloonError, VirtqueueError

QUEUE_SIZE_MAX: Final = 32768
"""virtio 1.2, 2.7: "Queue Size value is always a power of 2. The maximum Queue Size value is 32768." A packed ring
has the same maximum (2.8.10.1) and need not be a power of two."""

DESCRIPTOR_SIZE: Final = 16
DESCRIPTOR_TABLE_ALIGN: Final = 16
AVAIL_RING_ALIGN: Final = 2
USED_RING_ALIGN: Final = 4
EVENT_AREA_ALIGN: Final = 4

EVENT_AREA_BYTES: Final = 4
"""An event suppression structure of a packed ring: a position and flags, two bytes each (virtio 1.2, 2.8.14)."""

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4


def descriptor_table_bytes(size: int) -> int:
    """Return the bytes of a descriptor table of ``size`` entries."""
    return DESCRIPTOR_SIZE * size


def avail_ring_bytes(size: int) -> int:
    """Return the bytes of an available ring of ``size`` entries: flags, idx, ring, used_event, two bytes each."""
    return 2 * (2 + size + 1)


def used_ring_bytes(size: int) -> int:
    """Return the bytes of a used ring of ``size`` entries: flags, idx (2 each), elements (8), avail_event (2)."""
    return 2 * 2 + 8 * size + 2


def check_queue_size(size: int, *, packed: bool = False) -> None:
    """Raise :class:`VirtqueueError` unless ``size`` is from 1 to 32768 and, for a split ring, a power of two."""
    if not 1 <= size <= QUEUE_SIZE_MAX:
        raise VirtqueueError(f"queue size {size} is not from 1 to {QUEUE_SIZE_MAX}")
    if not packed and size & (size - 1):
        raise VirtqueueError(f"queue size {size} of a split ring is not a power of two")


def ring_delta(new: int, old: int) -> int:
    """Return how far the 16-bit index ``new`` is ahead of ``old``."""
    return (new - old) & 0xFFFF


def needs_event(event: int, new: int, old: int) -> bool:
    """Return whether moving an index from ``old`` to ``new`` passes ``event``, so that the other side must be notified.

    All three are 16-bit indices. virtio 1.2, 2.7.10.1 and 2.7.7.2: notify when the index just stepped over the event.
    """
    return ring_delta(new, (event + 1) & 0xFFFF) < ring_delta(new, old)


def refuse_big_endian() -> None:
    """Raise :class:`BalloonError` on a big-endian machine: the views of a ring use native byte order."""
    if sys.byteorder != "little":
        raise BalloonError("vhost-user-balloon runs on little-endian machines only")
