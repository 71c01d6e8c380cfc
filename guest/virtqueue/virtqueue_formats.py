"""Makes a virtqueue of the split or the packed format."""

from guest.virtqueue.packed_virtqueue import PackedDriverVirtqueue
from guest.virtqueue.split_virtqueue import SplitDriverVirtqueue
from guest.virtqueue.virtqueue import DriverVirtqueue, IndirectTables, WriteGuest
from protocol.packed_ring import PackedRing
from protocol.ring_formats import Ring


def open_virtqueue(
    ring: Ring, *, event_idx: bool, tables: IndirectTables | None, write_guest: WriteGuest, in_order: bool = False
) -> DriverVirtqueue:
    """Return the driver's side of ``ring``, whose memory is all zeros.

    ``tables`` None means that INDIRECT_DESC was not negotiated.
    """
    if isinstance(ring, PackedRing):
        return PackedDriverVirtqueue(
            ring, event_idx=event_idx, tables=tables, write_guest=write_guest, in_order=in_order
        )
    return SplitDriverVirtqueue(ring, event_idx=event_idx, tables=tables, write_guest=write_guest, in_order=in_order)
