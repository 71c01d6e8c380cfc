"""Acts with rings: garbage, chains of all lengths, loops, storms of kicks."""

import contextlib
import struct
from typing import Final

from guest.virtqueue.virtqueue import Buffer
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.split_ring import DESCRIPTOR, Descriptor
from scripts.check.fuzzing.corpus import CORPUS, read_inputs
from scripts.check.hostile.acts.act import act
from scripts.check.hostile.acts.attack import Attack, Stage
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.machine.raw_ring import Raw, publish_split, put_packed
from scripts.check.machine.vhost_user_device import GUEST_BASE

_BEFORE_RING: Final = 22
"""Bytes of a ring input of the corpus before the ring's own."""

_RINGS: Final = {
    packed: [data[_BEFORE_RING:] for data in read_inputs(CORPUS / name)]
    for packed, name in ((False, "split-ring"), (True, "packed-ring"))
}
_TABLE_ENTRIES: Final = 1200
_KICKS: Final = 2000


def kick(queue: DriverQueue) -> None:
    """Kick a queue, whose descriptor may be at its limit."""
    with contextlib.suppress(BlockingIOError):
        queue.kick()


def _any_address(attack: Attack, queue: DriverQueue) -> int:
    match attack.random.randrange(6):
        case 0 | 1 | 2:
            return GUEST_BASE + DATA_AT + PAGE_SIZE * attack.random.randrange(2048)
        case 3:
            return GUEST_BASE + queue.place + attack.random.randrange(queue.layout.bytes)
        case 4:
            return GUEST_BASE + attack.number(32)
        case _:
            return attack.number(64)


def _any_length(attack: Attack) -> int:
    return attack.random.choice((0, 1, 16, 4095, PAGE_SIZE, 4 * PAGE_SIZE, 4 << 20, attack.number(32)))


def report(attack: Attack, queue: DriverQueue) -> None:
    """Offer a report of touched and untouched pages as a driver does, as far as the ring takes it."""
    assert attack.machine is not None
    buffers: list[Buffer] = []
    for _ in range(attack.random.choice((1, 4, 32, 64))):
        at = DATA_AT + PAGE_SIZE * attack.random.randrange(4096)
        length = PAGE_SIZE * attack.random.choice((1, 1, 16, 512, 1024))
        if attack.random.random() < 0.3:
            attack.machine.memory.touch(at, PAGE_SIZE)
        buffers.append((GUEST_BASE + at, length))
    with contextlib.suppress(BalloonError, ValueError):
        queue.driver.add((), buffers)
    kick(queue)


@act("reports", Stage.HALF)
def _(attack: Attack) -> None:
    """Offer reports on any queue, more than it has entries, and take none back."""
    for _ in range(attack.random.randrange(1, 12)):
        if attack.queues:
            report(attack, attack.random.choice(attack.queues))


@act("any-data", Stage.HALF)
def _(attack: Attack) -> None:
    """Offer page frame numbers, statistics and command ids of any content and length."""
    for _ in range(attack.random.randrange(1, 8)):
        if not attack.queues:
            return
        queue = attack.random.choice(attack.queues)
        count = attack.random.choice((0, 1, 2, 10, 256, 4096, 16384))
        data = struct.pack(f"<{count}I", *(attack.random.randrange(0x150000) for _ in range(count)))
        with contextlib.suppress(BalloonError, ValueError, BlockingIOError):
            queue.offer_data(data + attack.random.randbytes(attack.random.randrange(4)))


@act("garbage-ring", Stage.HALF)
def _(attack: Attack) -> None:
    """Fill a ring with garbage, or with one of the fuzzer's, and kick it."""
    for _ in range(attack.random.randrange(1, 5)):
        if not attack.queues:
            return
        queue, random = attack.random.choice(attack.queues), attack.random
        size = queue.layout.bytes
        data = random.choice(_RINGS[queue.layout.packed]) if random.random() < 0.5 else random.randbytes(size)
        assert attack.machine is not None
        attack.machine.memory.write(queue.place, data[:size])
        if not queue.layout.packed and random.random() < 0.7:
            queue.split.avail[1] = random.randrange(2 * queue.layout.size) & 0xFFFF
        kick(queue)


@act("odd-chains", Stage.HALF)
def _(attack: Attack) -> None:
    """Publish chains of any length, with loops, links out of the table and flags of any kind."""
    for _ in range(attack.random.randrange(1, 5)):
        if not attack.queues:
            return
        queue, random = attack.random.choice(attack.queues), attack.random
        size = queue.layout.size
        count = random.choice((1, min(2, size), random.randrange(1, size + 1), size))
        flags = random.choice((0, 1, 2, 3, 7, 0xFFFF))
        chain = [
            Raw(_any_address(attack, queue), _any_length(attack), random.getrandbits(3) & flags) for _ in range(count)
        ]
        if queue.layout.packed:
            put_packed(queue, chain, buffer_id=attack.number(16))
        else:
            for at, one in enumerate(chain):
                following = random.choice((at + 1, at + 1, at + 1, 0, at, random.randrange(size), attack.number(16)))
                queue.split.write_descriptor(at, Descriptor(*one._replace(flags=one.flags | 1), following & 0xFFFF))
            publish_split(queue, [random.randrange(size + 1) for _ in range(random.choice((1, 1, size)))])
        kick(queue)


@act("odd-tables", Stage.HALF)
def _(attack: Attack) -> None:
    """Offer indirect tables: long ones, with loops, with tables in tables, in a ring's own pages, beyond the memory."""
    for _ in range(attack.random.randrange(1, 5)):
        if not attack.queues:
            return
        queue, random = attack.random.choice(attack.queues), attack.random
        count = random.choice((0, 1, 2, 31, 1024, _TABLE_ENTRIES))
        straight = random.random() < 0.5
        table = bytearray()
        for at in range(count):
            flags = 3 if straight else random.getrandbits(3)
            following = at + 1 if straight or random.random() < 0.9 else random.randrange(count + 1)
            table += DESCRIPTOR.pack(_any_address(attack, queue), _any_length(attack), flags, following)
        assert attack.machine is not None
        attack.machine.memory.write(queue.tables, bytes(table))
        address = GUEST_BASE + queue.tables if random.random() < 0.8 else _any_address(attack, queue)
        head = Raw(address, random.choice((len(table), len(table) + 1, 16, attack.number(32))), 4)
        if queue.layout.packed:
            put_packed(queue, [head])
        else:
            queue.split.write_descriptor(0, Descriptor(*head, 0))
            publish_split(queue, [0])
        kick(queue)


@act("kick-storm", Stage.HALF)
def _(attack: Attack) -> None:
    """Kick the queues as often as it goes, with nothing to serve."""
    for _ in range(attack.random.randrange(_KICKS)):
        if attack.queues:
            kick(attack.random.choice(attack.queues))


@act("events-wanted", Stage.HALF)
def _(attack: Attack) -> None:
    """Change what the driver asks to be notified of while reports are served."""
    for _ in range(attack.random.randrange(1, 30)):
        if not attack.queues:
            return
        queue = attack.random.choice(attack.queues)
        assert attack.machine is not None
        part = queue.layout.offsets[1]
        data = attack.random.randbytes(4)
        attack.machine.memory.write(queue.place + part, data if queue.layout.packed else data[:2])
        report(attack, queue)
