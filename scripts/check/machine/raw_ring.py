"""Chains as a driver must not make them: descriptors stored as they are, published without a look."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from protocol.packed_ring import AVAIL_USED, VIRTQ_DESC_F_AVAIL, PackedRing, used_bits
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.split_ring import DESCRIPTOR, Descriptor
from protocol.virtio_ring import VIRTQ_DESC_F_NEXT, ring_delta
from scripts.check.machine.deadline import DEADLINE, becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import Machine
from scripts.check.verdict import Failed

FIRST: Final = 0

_SHOWN: Final = 2
"""Descriptors that a reason shows."""

IN_TIME: Final = 1.0
"""Seconds after which a chain is taken for one that is kept. Devices answer within milliseconds where a processor is
free."""

_LOOK: Final = 0.005
"""Seconds between two looks whether the device asks for a reset."""


class Raw(NamedTuple):
    """A descriptor: guest address, bytes, flags without NEXT where :func:`put_chain` links."""

    address: int
    length: int
    flags: int = 0


def put_chain(queue: DriverQueue, descriptors: Sequence[Raw], *, kick: bool = True) -> None:
    """Store a linked chain at the beginning of a fresh ring, in either format, publish it, and kick."""
    last = len(descriptors) - 1
    linked = [
        one._replace(flags=one.flags | VIRTQ_DESC_F_NEXT) if at < last else one for at, one in enumerate(descriptors)
    ]
    if queue.layout.packed:
        put_packed(queue, linked)
    else:
        for at, one in enumerate(linked):
            queue.split.write_descriptor(at, Descriptor(*one, (at + 1) % queue.layout.size if at < last else 0))
        publish_split(queue, [0])
    if kick:
        full_fence()
        queue.kick()


def put_packed(queue: DriverQueue, descriptors: Sequence[Raw], *, buffer_id: int = 0) -> None:
    """Store descriptors at the beginning of a fresh packed ring, the first one's flags last."""
    ring = queue.packed
    for at, one in reversed(list(enumerate(descriptors))):
        ring.write_descriptor(at, one.address, one.length, buffer_id)
        order_accesses()
        ring.halves[8 * at + 7] = one.flags | VIRTQ_DESC_F_AVAIL
    queue.note_offered(buffer_id)


def publish_split(queue: DriverQueue, heads: Sequence[int], *, advance: int | None = None) -> None:
    """Append ``heads`` to the available ring and move its index by their number, or by ``advance``."""
    ring = queue.split
    index = ring.avail[1]
    for number, head in enumerate(heads):
        ring.avail[2 + ((index + number) & (ring.size - 1))] = head
    order_accesses()
    ring.avail[1] = (index + (len(heads) if advance is None else advance)) & 0xFFFF
    for head in heads:
        queue.note_offered(head)


def table_of(descriptors: Sequence[Raw], *, packed: bool, following: Sequence[int] | None = None) -> bytes:
    """Return an indirect table. In the split format its entries link to the next, or to ``following``."""
    if packed:
        return b"".join(DESCRIPTOR.pack(one.address, one.length, 0, one.flags) for one in descriptors)
    last = len(descriptors) - 1
    links = [*range(1, last + 1), 0] if following is None else list(following)
    return b"".join(
        DESCRIPTOR.pack(one.address, one.length, one.flags | (VIRTQ_DESC_F_NEXT if at < last else 0), links[at])
        for at, one in enumerate(descriptors)
    )


def used_count(queue: DriverQueue) -> int:
    """Return how many chains of :func:`put_chain` and :func:`publish_split` a fresh ring has back."""
    if isinstance(queue.ring, PackedRing):
        return int(queue.ring.halves[7] & AVAIL_USED == used_bits(wrap=True))
    return ring_delta(queue.ring.used[1], 0)


def used_element(queue: DriverQueue, number: int = FIRST) -> tuple[int, int]:
    """Return id and length of a used element of a fresh ring."""
    if isinstance(queue.ring, PackedRing):
        return queue.ring.halves[8 * number + 6], queue.ring.words[4 * number + 2]
    return queue.ring.used_elements[1 + 2 * number], queue.ring.used_elements[2 + 2 * number]


def comes_back(queue: DriverQueue, count: int = 1, seconds: float = DEADLINE) -> bool:
    """Return whether a fresh ring has ``count`` chains back within ``seconds``."""
    came = becomes_true(lambda: used_count(queue) >= count, seconds)
    if came:
        queue.note_used_raw([used_element(queue, number) for number in range(count)])
    return came


def require_back(queue: DriverQueue, what: str, *clauses: str, count: int = 1) -> None:
    """Check that a fresh ring has ``count`` chains back, of which ``what`` is the name.

    Raises:
        Failed: it has not. The reason has the indices and the first descriptors.
    """
    if not comes_back(queue, count):
        short = f": {used_count(queue)} of {count} came" if count > 1 else ""
        raise Failed(f"{what} {'do' if count > 1 else 'does'} not come back{short}; {ring_words(queue)}", *clauses)


def ring_words(queue: DriverQueue) -> str:
    """Return what is in a fresh ring: the indices of a split one, and the first descriptors as they lie in memory."""
    words = [] if queue.layout.packed else [queue.indices]
    for number in range(_SHOWN):
        data = queue.descriptor_bytes(number)
        if any(data):
            words.append(f"descriptor {number} is {data.hex()}")
    return ", ".join(words)


def is_dealt_with(machine: Machine, queue: DriverQueue, seconds: float) -> bool:
    """Return whether a fresh ring of a machine has a chain back within ``seconds``.

    A device that asks for a reset has given up, and is not waited for any longer.
    """
    end = time.monotonic() + seconds
    while not comes_back(queue, seconds=_LOOK):
        if machine.wants_reset() or time.monotonic() > end:
            return comes_back(queue, seconds=0)
    return True
