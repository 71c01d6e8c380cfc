"""A device's virtqueue that records its chains in flight, around one of either format."""

from host.inflight.inflight import InflightTracker, Region, is_uninitialised
from host.inflight.packed_inflight import PackedTracker
from host.inflight.split_inflight import SplitTracker
from host.virtqueue.virtqueue import CHAIN_MAX, Chain, DeviceVirtqueue, OnWrite, ReadGuest, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VhostUserError, VirtqueueError
from protocol.packed_ring import WRAP_COUNTER, PackedRing
from protocol.ring_formats import Ring


class InflightVirtqueue:
    """A :class:`DeviceVirtqueue` whose chains are noted by ``tracker`` from the taking to the giving back.

    Chains are given back in the order in which they were taken.
    """

    def __init__(self, queue: DeviceVirtqueue, tracker: InflightTracker, region: Region) -> None:
        self._queue = queue
        self._tracker = tracker
        self._region = region

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
        """Take the next available chain, or return None if the ring is empty. It is in flight from now on.

        Raises:
            LongChain: see :meth:`DeviceVirtqueue.pop`.
            VirtqueueError: the ring breaks a rule, or the inflight file cannot be written.
        """
        self._region.flush()
        chain = self._queue.pop(longest)
        if chain is not None:
            try:
                self._tracker.take(chain)
            except VirtqueueError:
                self._queue.unpop(chain)
                raise
        return chain

    def unpop(self, chain: Chain) -> None:
        """Put back ``chain``, the one that was taken last: it will be taken again."""
        self._queue.unpop(chain)
        self._tracker.untake()

    def add_used(self, head: int, length: int) -> None:
        """Give chain ``head`` back, the one that was taken first; ``length`` bytes of it were written by the device."""
        self._tracker.finish()
        self._queue.add_used(head, length)
        self._tracker.finished()

    def needs_notification(self) -> bool:
        """Return whether the driver has to be told about the used entries since this was last asked."""
        return self._queue.needs_notification()

    def enable_notification(self) -> bool:
        """Ask for a kick when the next chain becomes available. Return True if one already has: then go on popping."""
        return self._queue.enable_notification()


def open_tracked(
    region: Region,
    entries: int,
    ring: Ring,
    base: int,
    features: RingFeatures,
    read_guest: ReadGuest,
    *,
    recovers: bool,
) -> DeviceVirtqueue:
    """Return the device's side of ``ring`` with its chains noted in ``region``, which has ``entries`` descriptors.

    ``recovers`` says that a predecessor may have left chains in flight. The ring then goes on from its used position
    instead of ``base``, which a front-end that lost its back-end cannot know. If the region was not written yet, or
    without ``recovers``, it goes on from ``base``, with no chain in flight.

    Raises:
        VhostUserError: the region is too small or invalid, or ``base`` is not a place in the ring.
    """
    if ring.size > entries:
        raise VhostUserError(f"a ring of {ring.size} where the inflight file has room for {entries}")
    try:
        recovers = recovers and not is_uninitialised(region)
        if isinstance(ring, PackedRing):
            return _open_packed(region, entries, ring, base, features, read_guest, recovers)
        split = SplitTracker(region, entries, ring.used[1])
        if recovers:
            split.recover(ring)
            base = ring.used[1]
        else:
            split.begin()
    except VirtqueueError as error:
        raise VhostUserError(str(error)) from error
    return InflightVirtqueue(open_virtqueue(ring, base, features, read_guest), split, region)


def _open_packed(
    region: Region,
    entries: int,
    ring: PackedRing,
    base: int,
    features: RingFeatures,
    read_guest: ReadGuest,
    recovers: bool,
) -> DeviceVirtqueue:
    if not recovers:
        queue = open_virtqueue(ring, base, features, read_guest)
        tracker = PackedTracker(region, entries, ring.size, queue.base >> 16)
        tracker.begin()
        return InflightVirtqueue(queue, tracker, region)
    tracker = PackedTracker(region, entries, ring.size, WRAP_COUNTER)
    tracker.recover(ring)
    base = tracker.position | tracker.position << 16
    return InflightVirtqueue(open_virtqueue(ring, base, features, read_guest), tracker, region)
