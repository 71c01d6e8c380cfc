"""The driver's half of a virtqueue of either format: requests out, completions in.

The formats are :mod:`guest.virtqueue.split_virtqueue` and :mod:`guest.virtqueue.packed_virtqueue`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from protocol.errors import BalloonError, VirtqueueError
from protocol.virtio_ring import VIRTQ_DESC_F_WRITE

Buffer = tuple[int, int]
"""A guest address and a length in bytes."""

BufferDescriptor = tuple[int, int, int]
"""Address, length and flags of a descriptor that is not linked yet."""

WriteGuest = Callable[[int, bytes], None]
"""Stores bytes at a guest address."""


class QueueFullError(BalloonError):
    """There are fewer free descriptors than the request needs. Nothing was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndirectTables:
    """Guest memory set aside for indirect tables: their guest addresses, and how many descriptors each holds."""

    addresses: tuple[int, ...]
    capacity: int


@dataclass(frozen=True, slots=True)
class UsedBuffer:
    """A request that the device used: its head and the bytes that the device says it wrote."""

    head: int
    length: int


class UsedBatch:
    """Completions with IN_ORDER: requests come back in the order in which they were made available.

    The device may report several with one used entry, for the last of them; those before it count as used completely
    (virtio 1.2, 2.7.9 and 2.8.8).
    """

    def __init__(self) -> None:
        self._available: deque[tuple[int, int]] = deque()
        self._last: UsedBuffer | None = None

    @property
    def is_open(self) -> bool:
        """Whether reported requests are waiting to be taken."""
        return self._last is not None

    def add(self, head: int, writable: Sequence[Buffer]) -> None:
        """Note that request ``head`` was made available."""
        self._available.append((head, sum(length for _, length in writable)))

    def report(self, last: UsedBuffer, limit: int) -> None:
        """Mark every request up to ``last`` as used: at most ``limit`` requests.

        Raises:
            VirtqueueError: ``last`` is not among the ``limit`` oldest requests.
        """
        if all(head != last.head for head, _ in islice(self._available, limit)):
            raise VirtqueueError(f"the device gave back {last.head}, which is not among the next {limit}")
        self._last = last

    def take(self) -> UsedBuffer:
        """Return the oldest request that was reported."""
        assert self._last is not None
        head, length = self._available.popleft()
        if head != self._last.head:
            return UsedBuffer(head, length)
        last, self._last = self._last, None
        return last


class DriverVirtqueue(ABC):
    """The driver's side of one virtqueue over zeroed ring memory, and what both formats share: the indirect tables.

    ``tables`` None means that INDIRECT_DESC was not negotiated: every buffer then takes a descriptor of its own.
    """

    def __init__(
        self, *, event_idx: bool, tables: IndirectTables | None, write_guest: WriteGuest, in_order: bool
    ) -> None:
        self._event_idx = event_idx
        self._write_guest = write_guest
        self._table_capacity = tables.capacity if tables else 0
        self._free_tables = list(tables.addresses) if tables else []
        self._table_of: dict[int, int] = {}
        self._batch = UsedBatch() if in_order else None

    @property
    @abstractmethod
    def outstanding(self) -> int:
        """Number of requests that the device has not given back."""

    @property
    @abstractmethod
    def oldest(self) -> int:
        """Where the oldest request lies that the device has not given back, as a base for a device to start from.

        For a device that uses buffers in order, all requests in flight follow this place.
        """

    @abstractmethod
    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make one request available and return its head. The device is not notified: see :meth:`needs_kick`.

        Raises:
            QueueFullError: too few free descriptors.
        """

    @abstractmethod
    def needs_kick(self) -> bool:
        """Return whether the device asked to be notified of the requests added since the last call."""

    @abstractmethod
    def get_used(self) -> UsedBuffer | None:
        """Return the next request that the device used, or None.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """

    @abstractmethod
    def enable_interrupt(self) -> bool:
        """Ask for an interrupt with the next used entry. Return True if there is one already: then collect it."""

    @staticmethod
    def _descriptors(readable: Sequence[Buffer], writable: Sequence[Buffer]) -> list[BufferDescriptor]:
        # What the device may read comes first (virtio 1.2, 2.7.4.2 and 2.8.6).
        buffers = [(address, length, 0) for address, length in readable]
        buffers += [(address, length, VIRTQ_DESC_F_WRITE) for address, length in writable]
        if not buffers:
            raise ValueError("a request without buffers")
        return buffers
