"""Records of chains in flight that the daemon keeps for itself, so that another process can go on with a ring.

A split ring needs none: chains are given back in the order in which they were taken, so those in flight are the ones
after the used index, which stands in the ring. A packed ring does not say how far it got. Its chains are noted in a
file of the queue's own, in the form of the inflight file, a new one each time that the queue begins to run: the old one
stays valid until the new one is.
"""

from collections.abc import Callable
from typing import Protocol

from host.inflight.inflight import describe_file
from host.inflight.inflight_file import InflightFile, make_inflight_file
from host.inflight.inflight_virtqueue import open_tracked
from host.virtqueue.virtqueue import DeviceVirtqueue, ReadGuest, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VhostUserError
from protocol.packed_ring import PackedRing
from protocol.ring_formats import Ring


class RingStart(Protocol):
    """How a ring is to be opened: see :class:`host.vhost_user.actions.StartRing`."""

    @property
    def index(self) -> int:
        """The queue's number."""

    @property
    def base(self) -> int:
        """Where the front-end says that the ring goes on."""

    @property
    def features(self) -> RingFeatures:
        """The features of the ring."""

    @property
    def recovers(self) -> bool:
        """Whether another process may have served the ring."""


class RingRecords:
    """The records of one session. ``left`` are files that another process has left, by queue, which are owned here.
    ``on_record`` is told of each new one before its queue runs."""

    def __init__(self, left: dict[int, int], on_record: Callable[[int, int], None]) -> None:
        self._left = left
        self._on_record = on_record
        self._files: dict[int, InflightFile] = {}

    def open(self, action: RingStart, ring: Ring, read_guest: ReadGuest) -> DeviceVirtqueue:
        """Return the device's side of ``ring``, where it got to if another process has served it.

        Raises:
            VhostUserError: the base is not a place in the ring, or no file can be made.
        """
        if not isinstance(ring, PackedRing):
            base = ring.used[1] if action.recovers else action.base
            return open_virtqueue(ring, base, action.features, read_guest)
        base = self._place_of(action, ring, read_guest)
        file = _make_record(ring.size)
        queue = open_tracked(
            file.region(0, packed=True), ring.size, ring, base, action.features, read_guest, recovers=False
        )
        self._on_record(action.index, file.fd)
        if (old := self._files.pop(action.index, None)) is not None:
            old.close()
        self._files[action.index] = file
        return queue

    def _place_of(self, action: RingStart, ring: PackedRing, read_guest: ReadGuest) -> int:
        fd = self._left.pop(action.index, None)
        if fd is None:
            return action.base
        left = InflightFile(fd, describe_file(1, ring.size, packed=True), packed=True)
        try:
            if not action.recovers:
                return action.base
            region = left.region(0, packed=True)
            return open_tracked(region, ring.size, ring, action.base, action.features, read_guest, recovers=True).base
        finally:
            left.close()

    def close(self) -> None:
        """Close all files. No queue may run."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _make_record(size: int) -> InflightFile:
    told = describe_file(1, size, packed=True)
    try:
        return InflightFile(make_inflight_file(told.mmap_size), told, packed=True)
    except OSError as error:
        raise VhostUserError(f"the record of a ring cannot be made: {error.strerror}") from error
