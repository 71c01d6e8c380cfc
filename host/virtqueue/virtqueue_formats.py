"""Opens a virtqueue of the split or the packed format."""

from host.virtqueue.packed_virtqueue import PackedDeviceVirtqueue
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue
from host.virtqueue.virtqueue import DeviceVirtqueue, ReadGuest, RingFeatures
from protocol.packed_ring import PackedRing
from protocol.ring_formats import Ring


def open_virtqueue(ring: Ring, base: int, features: RingFeatures, read_guest: ReadGuest) -> DeviceVirtqueue:
    """Return the device's side of ``ring``, which goes on from ``base`` (see :attr:`DeviceVirtqueue.base`).

    Raises:
        VhostUserError: ``base`` is not a place in the ring.
    """
    if isinstance(ring, PackedRing):
        return PackedDeviceVirtqueue(ring, base, features, read_guest)
    return SplitDeviceVirtqueue(ring, base, features, read_guest)
