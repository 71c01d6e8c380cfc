"""IN_ORDER: buffers are used in the order in which they became available, one by one or several with one entry.

With the feature a device may write one used entry for a batch, the one of its last buffer, at the place of the batch's
first, and go on after the batch; in a packed ring as in a split one (virtio 1.2, 2.7.9 and 2.8.8). A driver then takes
the buffers before that one for used completely. So an entry for a later buffer is right, and one for an earlier
buffer after it is not.
"""

import random
from collections.abc import Sequence
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.packed_ring import AVAIL_USED
from protocol.virtio import FeatureBit, feature_mask
from scripts.check.device.cases.reporting import BLOCK, judge_discard, pages_of
from scripts.check.device.trial import Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import WANTED, Machine, Range
from scripts.check.machine.memory_file import DATA_AT, MIB
from scripts.check.machine.raw_ring import used_element
from scripts.check.verdict import Failed, require, skip

UNWRITTEN: Final = 0xFFFF_FFFF

ROUNDS: Final = 120


def ordered(trial: Trial, size: int) -> Machine:
    """Return a machine with IN_ORDER, which the case is NOT EXERCISED without."""
    machine = trial.machine(wanted=WANTED | feature_mask(FeatureBit.IN_ORDER), size=size)
    if not machine.has(FeatureBit.IN_ORDER):
        skip("the device does not offer IN_ORDER")
    if not trial.packed:
        # A place that a batch leaves out has to differ from one that is written.
        start = machine.reporting.place + machine.reporting.layout.offsets[2] + 4
        machine.memory.write(start, b"\xff" * (8 * size))
    return machine


@ring_case("in-order", clauses=("G-23",), quick=True)
def in_order(trial: Trial) -> None:
    """Large and small reports come back in the order in which they became available, with IN_ORDER."""
    machine = ordered(trial, 64)
    queue = machine.reporting
    given: list[Range] = [(DATA_AT + n * BLOCK, BLOCK if n % 2 == 0 else PAGE_SIZE) for n in range(24)]
    for offset, length in given:
        machine.memory.touch(offset, length)
    before = machine.memory.present()
    heads = [queue.driver.add((), machine.buffers([one])) for one in given]
    queue.kick()
    if not becomes_true(lambda: used_buffers(queue, heads) == len(heads)):
        raise Failed(f"{used_buffers(queue, heads)} of {len(heads)} buffers came back", "G-23")
    machine.barrier()
    used_buffers(queue, heads)  # an entry that an earlier look took for left out may be there by now
    judge_discard(machine, before, pages_of(*given))


def used_buffers(queue: DriverQueue, heads: Sequence[int]) -> int:
    """Return how many of the buffers ``heads``, each of one descriptor of a fresh ring, its used entries give back.

    Raises:
        Failed: they are not in order.
    """
    place = {head: number for number, head in enumerate(heads)}
    written = queue.layout.size if queue.layout.packed else queue.split.used[1]
    done = 0
    while done < min(len(heads), written) and _is_written(queue, done):
        head = used_element(queue, done)[0]
        number = place.get(head)
        if number is None:
            raise Failed(f"used entry {done} has the head {head}, which is no buffer's", "S-17", "P-16")
        if number < done:
            raise Failed(f"used entry {done} gives back buffer {number}, after a later one", "G-23")
        if number >= written:
            raise Failed(
                f"used entry {done} gives back buffer {number} while the used index is {written}: those before it are "
                "left out, and the index does not count them",
                "G-23",
            )
        for skipped in range(done + 1, number + 1):
            if _is_written(queue, skipped):
                raise Failed(
                    f"used entry {done} gives back buffer {number}, and entry {skipped} then buffer "
                    f"{place.get(used_element(queue, skipped)[0])}: they became available in the other order",
                    "G-23",
                )
        done = number + 1
    return done


def _is_written(queue: DriverQueue, entry: int) -> bool:
    if queue.layout.packed:
        return queue.packed.halves[8 * entry + 7] & AVAIL_USED == AVAIL_USED
    return used_element(queue, entry)[0] != UNWRITTEN


@ring_case("in-order-many-rounds", clauses=("G-23",))
def many_rounds(trial: Trial) -> None:
    """Over many laps of a small ring, with one buffer or several at a time, the order stays, and each page goes."""
    machine = ordered(trial, 8)
    queue = machine.reporting
    shuffled = random.Random(1)
    for turn in range(ROUNDS):
        count = shuffled.randint(1, 8)
        given: list[Range] = [(DATA_AT + 2 * n * PAGE_SIZE, PAGE_SIZE) for n in shuffled.sample(range(32), count)]
        machine.memory.touch(DATA_AT, MIB // 4)
        before = machine.memory.present()
        heads = [queue.driver.add((), machine.buffers([one])) for one in given]
        if queue.driver.needs_kick():
            queue.kick()
        came = [used.head for used in queue.collect(count)]
        require(came == heads, f"turn {turn}: buffers {heads} came back as {came}", "G-23")
        judge_discard(machine, before, pages_of(*given))
