"""The inflight file: the record of chains taken and not given back, which survives the device's process.

The back-end makes the file, the front-end keeps it and hands it to the back-end's successor after a crash. It holds one
region for each queue, 64-byte aligned: a header, then one entry for each descriptor.

This device gives chains back in the order in which it took them. So the chains in flight are those that the ring still
offers from its used position on, and to resubmit them the queue goes on there: the recovery here finds that position,
clears the marks in the file, and the queue takes the same chains again, in the order of their counters.

Every step is one small write, in the order that the specification gives, so that a process may be killed between any
two of them: a chain is marked before it is worked on, and the mark goes only when the ring has the chain back.

Source: vhost-user specification, "Inflight I/O tracking". All numbers are little-endian.
"""

from struct import Struct
from typing import Final, Protocol

from host.virtqueue.virtqueue import Chain
from protocol.errors import VhostUserError, VirtqueueError
from protocol.vhost_user_payloads import InflightDescription
from protocol.virtio_balloon import QUEUES_MAX
from protocol.virtio_ring import QUEUE_SIZE_MAX

VERSION: Final = 1
REGION_ALIGN: Final = 64

VERSION_AT: Final = 8
"""Where the 16-bit version stands in both headers. Zero means that the region was not written yet."""

COUNTER_MASK: Final = (1 << 64) - 1

IN_FLIGHT_MAX: Final = 256
"""Most chains in flight that a recovery accepts: this device has two, and a long recovery delays all machines."""

SPLIT_HEADER: Final = Struct("<QHHHH")
"""features, version, desc_num, last_batch_head, used_idx."""
SPLIT_ENTRY: Final = Struct("<B5xHQ")
"""inflight, next, counter."""

PACKED_HEADER: Final = Struct("<QHHHHHHBB10x")
"""features, version, desc_num, free_head, old_free_head, used_idx, old_used_idx, used_wrap_counter, the old one."""
PACKED_ENTRY: Final = Struct("<BxHHHQHHIQ")
"""inflight, next, last, num, counter, id, flags, len, addr."""

U16: Final = Struct("<H")

assert SPLIT_HEADER.size == SPLIT_ENTRY.size == 16
assert PACKED_HEADER.size == PACKED_ENTRY.size == 32


class Region(Protocol):
    """One queue's bytes of the inflight file. All methods raise :class:`VirtqueueError` if the file was cut short."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``."""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``."""

    def flush(self) -> None:
        """Write to the file what was stored while the queue was being opened. On the queue's worker."""


def region_bytes(queue_size: int, *, packed: bool) -> int:
    """Return the bytes of the region of a queue of up to ``queue_size`` descriptors."""
    header, entry = (PACKED_HEADER, PACKED_ENTRY) if packed else (SPLIT_HEADER, SPLIT_ENTRY)
    return -(-(header.size + queue_size * entry.size) // REGION_ALIGN) * REGION_ALIGN


def describe_file(num_queues: int, queue_size: int, *, packed: bool) -> InflightDescription:
    """Return the description of a file for ``num_queues`` queues of ``queue_size`` descriptors: GET_INFLIGHT_FD.

    Raises:
        VhostUserError: more queues than a balloon has, or more descriptors than a ring has.
    """
    if not 1 <= num_queues <= QUEUES_MAX:
        raise VhostUserError(f"an inflight file for {num_queues} queues; a balloon has 1 to {QUEUES_MAX}")
    if not 1 <= queue_size <= QUEUE_SIZE_MAX:
        raise VhostUserError(f"an inflight file for queues of {queue_size}; a queue has 1 to {QUEUE_SIZE_MAX} entries")
    size = num_queues * region_bytes(queue_size, packed=packed)
    return InflightDescription(mmap_size=size, mmap_offset=0, num_queues=num_queues, queue_size=queue_size)


def check_description(told: InflightDescription, *, packed: bool) -> None:
    """Check the description of a file in SET_INFLIGHT_FD.

    Raises:
        VhostUserError: it is too small for its queues, or :func:`describe_file` would refuse its numbers.
    """
    needed = describe_file(told.num_queues, told.queue_size, packed=packed).mmap_size
    if told.mmap_size < needed:
        raise VhostUserError(f"an inflight file of {told.mmap_size} bytes where its queues need {needed}")


class InflightTracker(Protocol):
    """Keeps one queue's region while the queue runs. Chains are finished in the order in which they were taken."""

    def take(self, chain: Chain) -> None:
        """Note that ``chain`` was taken. Raises :class:`VirtqueueError` where the region has no room for it."""

    def untake(self) -> None:
        """Note that the chain taken last was put back."""

    def finish(self) -> None:
        """Note that the chain taken first is about to be given back."""

    def finished(self) -> None:
        """Note that the ring has that chain back."""


def is_uninitialised(region: Region) -> bool:
    """Return whether the region was not written yet."""
    return region.read(VERSION_AT, 2) == bytes(2)


def check_header(version: int, entries: int, expected: int) -> None:
    """Raise :class:`VirtqueueError` unless a region's header is valid."""
    if version != VERSION:
        raise VirtqueueError(f"an inflight region of version {version}, not {VERSION}")
    if entries != expected:
        raise VirtqueueError(f"an inflight region for {entries} descriptors where {expected} were announced")


def find_marked(table: bytes, entry_size: int) -> list[int]:
    """Return the numbers of the entries that are marked as in flight, of entries of ``entry_size`` bytes.

    Without a step of Python for each entry: a front-end may hand back the largest table at any rate.

    Raises:
        VirtqueueError: more than :data:`IN_FLIGHT_MAX` entries are marked.
    """
    marks = table[::entry_size]
    count = marks.count(1)
    if count > IN_FLIGHT_MAX:
        raise VirtqueueError(f"an inflight region with {count} chains in flight, {IN_FLIGHT_MAX} is the most")
    found: list[int] = []
    at = marks.find(1)
    while at >= 0:
        found.append(at)
        at = marks.find(1, at + 1)
    return found
