"""The one place that chooses between the formats of a virtqueue.

Must not know: mappings, eventfds, what a chain means.
"""

from host.split_virtqueue import SplitDeviceVirtqueue
from host.virtqueue import DeviceVirtqueue, ReadGuest, RingFeatures
from protocol.split_ring import SplitRing


def open_virtqueue(ring: SplitRing, base: int, features: RingFeatures, read_guest: ReadGuest) -> DeviceVirtqueue:
    """Return the device's side of ``ring``, which goes on from ``base`` (see :attr:`DeviceVirtqueue.base`)."""
    return SplitDeviceVirtqueue(ring, base, features, read_guest)
