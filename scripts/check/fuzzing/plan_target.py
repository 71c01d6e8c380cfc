"""Fuzz targets: what is discarded for any ranges of any memory, and for any chain on any queue of the balloon.

Input: the memory (see :class:`scripts.check.fuzzing.any_memory.AnyMemory`), choices, buffers.
"""

from typing import Final

from host.balloon.personality import PERSONALITIES
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.discard_plan import JOINED_MAX, DeviceMemory, Ragged, RangeRules, joined
from host.virtqueue.virtqueue import Buffer, Chain
from protocol.balloon_config import BalloonConfig
from protocol.errors import VirtqueueError
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from scripts.check.fuzzing.any_memory import AnyMemory, any_memory
from scripts.check.fuzzing.byte_source import ByteSource, must

_BUFFERS_MAX: Final = 32
_RAGGED: Final = tuple(Ragged)
_PERSONALITIES: Final = tuple(PERSONALITIES.values())
_QUEUES: Final = (*BalloonQueue, None)


def discard_plan(data: bytes) -> None:
    """Nothing is planned outside of a region, on a ring's page or on the indirect table, and every range is judged."""
    source = ByteSource(data)
    memory = any_memory(source)
    if memory is None:
        return
    choices = source.number()
    rules = RangeRules(ragged=_RAGGED[choices % 3], clamps=bool(choices & 4))
    spared = memory.buffer(source) if choices & 8 else None
    buffers = _buffers(memory, source)
    plan = memory.view.plan(buffers, spared, rules)
    memory.check(plan.discards, spared, rules.ragged)
    must(
        len(plan.discards) + len(plan.refused) == plan.ranges == len(buffers), "a range is neither planned nor refused"
    )
    must(plan.bytes == sum(length for _, length in buffers), "a wrong number of bytes")
    must(sum(each.ranges for each in plan.refused_by_reason()) == len(plan.refused), "a refusal is not counted")
    # Each range is judged as it is when it comes alone: what was found for the one before it must not matter.
    alone = DeviceMemory(memory.table, memory.page_sizes, memory.rings, memory.files)
    each = [place for buffer in buffers for place in alone.plan([buffer], spared, rules).discards]
    must(each == plan.discards, "the verdict on a range depends on the ranges before it")
    pieces = list(joined(plan.discards))
    must(sum(length for _, _, length in pieces) == sum(place.length for place in plan.discards), "joining loses bytes")
    longest = max((place.length for place in plan.discards), default=0)
    must(all(length <= max(JOINED_MAX, longest) for _, _, length in pieces), "a joined range is too long")
    for address, length in buffers[:2]:
        _check_split(memory, address // PAGE_SIZE * PAGE_SIZE, min(length, 64 * PAGE_SIZE) // PAGE_SIZE * PAGE_SIZE)


def _check_split(memory: AnyMemory, address: int, length: int) -> None:
    at = address
    for begin, part in memory.view.split_pages(address, length):
        must(begin == at, "a run of pages is cut with a gap")
        at += part
    must(at == address + length, "a run of pages is cut to another length")


def _buffers(memory: AnyMemory, source: ByteSource) -> list[Buffer]:
    buffers: list[Buffer] = []
    while source.left and len(buffers) < _BUFFERS_MAX:
        buffers.append(memory.buffer(source))
    return buffers


def chain(data: bytes) -> None:
    """Any chain on any queue: nothing planned that may not be discarded, nothing written but to the chain's buffers.

    What is read at any guest address is the input's last 64 bytes, over and over.
    """
    source = ByteSource(data)
    memory = any_memory(source)
    if memory is None:
        return
    queue = _QUEUES[source.number() % len(_QUEUES)]
    choices = source.number()
    device = VirtioBalloon(
        config=BalloonConfig(poison_val=source.number() if choices & 1 else 0),
        personality=_PERSONALITIES[source.number() % len(_PERSONALITIES)],
        features=source.number() | source.number() << 32,
        poison_told=bool(choices & 2),
    )
    content = data[-64:] or b"\0"

    def read_guest(address: int, length: int) -> bytes:
        if memory.table.translate_guest(address, length) is None:
            raise VirtqueueError("outside the guest's memory")
        return (content * (length // len(content) + 1))[:length]

    spared = memory.buffer(source) if choices & 4 else None
    split = source.number() % 8
    buffers = _buffers(memory, source)
    made = Chain(0, buffers[:split], buffers[split:], spared)
    try:
        outcome = device.serve(queue, made, memory.view, read_guest)
    except VirtqueueError:
        return
    ranges = device.personality.ranges if queue is BalloonQueue.REPORTING else RangeRules()
    memory.check(outcome.plan.discards, spared, ranges.ragged)
    poisoned = device.keeps_pages is not None and queue in device.personality.poison_keeps
    must(not poisoned or not outcome.plan.discards, "a discard in a guest that poisons its free pages")

    def write_guest(address: int, part: bytes) -> None:
        inside = any(begin <= address and address + len(part) <= begin + size for begin, size in made.writable)
        must(inside, "a store outside of the chain's writable buffers")

    used = device.used_length(queue, made, outcome, write_guest)
    must(0 <= used < 1 << 32, "a used length that does not fit into its field")
