"""The statistics queue: one buffer that the device keeps until it wants new numbers."""

import struct
import time
from typing import Final

from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag, build_statistics
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.verdict import Found, require

GIB: Final = 1 << 30

STATISTICS: Final = {
    StatisticTag.SWAP_IN: 0,
    StatisticTag.MEMFREE: GIB,
    StatisticTag.MEMTOT: 4 * GIB,
    StatisticTag.AVAIL: 2 * GIB,
    StatisticTag.CACHES: GIB // 2,
}

USED_SECONDS: Final = 0.1
"""Seconds within which a device gives the statistics buffer back that does not hold it."""

WATCHED_SECONDS: Final = 0.1
STORM: Final = 10
"""Returns of the statistics buffer in :data:`WATCHED_SECONDS` that no device has a reason for."""


def survives(machine: Machine, data: bytes) -> None:
    """Give ``data`` as statistics and check that the device still works, whatever it makes of them."""
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.memory.present()
    machine.queue(BalloonQueue.STATS).offer_data(data)
    machine.barrier()
    machine.check_gone(before, set(), "M-safe")
    machine.check_survives()


@ring_case("statistics-first-buffer", clauses=("BS-9", "BS-10", "F-statistics-storm"), edges=(132,), quick=True)
def first_buffer(trial: Trial) -> None:
    """The driver's first buffer is taken and comes back only when the device wants new numbers."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.STATS)
    queue.offer_data(build_statistics(STATISTICS))
    returns = _returns(queue, build_statistics(STATISTICS))
    machine.check_survives()
    if returns > STORM:
        raise Found(
            f"the device gave the statistics buffer back {returns} times in {WATCHED_SECONDS:g} s: a driver that "
            "answers at once, as Linux does, is kept busy for ever",
            "F-statistics-storm",
        )


def _returns(queue: DriverQueue, data: bytes) -> int:
    end, returns = time.monotonic() + WATCHED_SECONDS, 0
    while time.monotonic() < end and returns <= STORM:
        if queue.take_used() is None:
            time.sleep(0.001)
        else:
            returns += 1
            queue.offer_data(data)
    return returns


@SUITE.case("statistics-second-buffer", clauses=("BS-1",), edges=(132,), quick=True)
def second_buffer(trial: Trial) -> None:
    """A second buffer beside the first, a driver's mistake, costs at most one of them and no service."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.STATS)
    data = build_statistics(STATISTICS)
    queue.offer_data(data)
    queue.offer_data(data)
    machine.barrier()
    machine.check_survives()


@SUITE.case("statistics-buffer-untouched", clauses=("S-4", "P-3"), quick=True)
def buffer_untouched(trial: Trial) -> None:
    """The device does not write the buffer that holds the statistics, and says that it wrote nothing."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.STATS)
    data = build_statistics(STATISTICS)
    queue.offer_data(data)
    machine.check_survives()
    seen = machine.memory.read(queue.buffers, len(data))
    require(seen == data, f"the buffer held {data.hex()} and holds {seen.hex()}", "S-4", "P-3")
    used: list[int] = []

    def came() -> bool:
        one = queue.take_used()
        used.extend([one.length] if one is not None else ())
        return bool(used)

    becomes_true(came, USED_SECONDS)  # a device that holds the buffer, as it should, gives nothing back
    require(not any(used), f"the used length of statistics is {sum(used)} instead of 0", "S-17")


@SUITE.case(
    "statistics-any-order",
    clauses=("BS-10",),
    edges=(133,),
    peers=("firecracker/stats", "villain/L0019", "villain/L0042"),
    quick=False,
)
def any_order(trial: Trial) -> None:
    """Entries are taken in any order, some or all of them."""
    for tags in (reversed(StatisticTag), [StatisticTag.MEMTOT], list(StatisticTag)):
        survives(trial.machine(), build_statistics({tag: int(tag) << 20 for tag in tags}))


@SUITE.case(
    "statistics-unknown-tags", clauses=("BS-9", "F-statistics-tags"), edges=(133,), peers=("villain/L0032",), quick=True
)
def unknown_tags(trial: Trial) -> None:
    """Tags that the device does not know are ignored: Linux's from 10 on, others' private ones."""
    tags = (10, 15, 16, 255, 65534, 65535)
    survives(trial.machine(), b"".join(struct.pack("<HQ", tag, 1 << 63) for tag in tags))


@SUITE.case("statistics-odd-length", clauses=("BS-5",), edges=(133,), peers=("villain/L0020",), quick=False)
def odd_length(trial: Trial) -> None:
    """A length that is no multiple of an entry's 10 bytes, or of the text's 6, does no harm."""
    whole = build_statistics(STATISTICS)
    for length in (1, 6, STATISTIC_SIZE - 1, STATISTIC_SIZE + 1, len(whole) - 3):
        survives(trial.machine(), whole[:length])


@SUITE.case("statistics-huge", clauses=("BS-9",), edges=(133,), peers=("firecracker/stats_oversized",))
def huge(trial: Trial) -> None:
    """A buffer of 200 KiB is read in bounded time."""
    survives(trial.machine(), build_statistics(STATISTICS) * 4000)


@SUITE.case("statistics-over-two-buffers", clauses=("S-2",), peers=("villain/L0030",))
def framing(trial: Trial) -> None:
    """An entry may begin in one buffer of the chain and end in the next."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.STATS)
    data = build_statistics(STATISTICS)
    machine.memory.write(queue.buffers, data[:13])
    machine.memory.write(queue.buffers + 512, data[13:])
    queue.offer([(machine.address(queue.buffers), 13), (machine.address(queue.buffers + 512), len(data) - 13)], ())
    machine.barrier()
    machine.check_survives()


@SUITE.case("statistics-writable-buffer", clauses=("S-4",))
def writable(trial: Trial) -> None:
    """Statistics in a device-writable buffer, a driver's mistake, do no harm."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.STATS)
    machine.memory.write(queue.buffers, build_statistics(STATISTICS))
    queue.offer((), [(machine.address(queue.buffers), len(build_statistics(STATISTICS)))])
    machine.barrier()
    machine.check_survives()
