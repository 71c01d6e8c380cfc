"""Kicks and interrupts: none is lost, none comes unasked, and the used ring is as a watcher may see it."""

from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.packed_ring import RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE, event_word
from protocol.process.memory_fence import full_fence
from protocol.split_ring import VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import WANTED, Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.machine.watcher import RingWatcher
from scripts.check.verdict import Failed, Found, require, skip
from scripts.check.words import counted

QUIET: Final = WANTED & ~feature_mask(BalloonFeature.FREE_PAGE_HINT)
"""Without the queue of hints. QEMU 11.1 interrupts for it once each driver has begun, tens of milliseconds late if its
thread has to wait, and the queues of virtio-mmio have one interrupt together."""

WITHOUT_EVENT_IDX: Final = QUIET & ~feature_mask(FeatureBit.RING_EVENT_IDX)

NEAR_THE_WRAP: Final = 65536 - 60

ROUNDS: Final = 1500
"""Rounds of a driver that kicks only when it is asked to. A lost one stops it; most faults show in the first ten."""


def give(machine: Machine, number: int = 0) -> None:
    """Make one page available on the reporting queue without a kick."""
    at = DATA_AT + PAGE_SIZE * number
    machine.reporting.driver.add((), machine.buffers([(at, PAGE_SIZE)]))


def ask_for_interrupt(queue: DriverQueue, wanted: bool) -> None:
    """Say without EVENT_IDX whether the driver wants interrupts."""
    if queue.layout.packed:
        flags = RING_EVENT_FLAGS_ENABLE if wanted else RING_EVENT_FLAGS_DISABLE
        queue.packed.driver_event[0] = flags << 16
    else:
        queue.split.avail[0] = 0 if wanted else VIRTQ_AVAIL_F_NO_INTERRUPT
    full_fence()


@ring_case("kick-only-when-asked", clauses=("S-16", "S-19", "P-15"), edges=(118, 119), quick=True)
def only_when_asked(trial: Trial) -> None:
    """A driver that kicks only when the device asks for it is served every time, with EVENT_IDX."""
    machine = trial.machine()
    if not machine.has(FeatureBit.RING_EVENT_IDX):
        skip("the device does not offer EVENT_IDX")
    _rounds(machine)


@ring_case("kick-without-event-idx", clauses=("S-19", "P-15"), edges=(118,), quick=True)
def without_event_idx(trial: Trial) -> None:
    """A driver that kicks only when the device asks for it is served every time, without EVENT_IDX."""
    _rounds(trial.machine(wanted=WITHOUT_EVENT_IDX))


def _rounds(machine: Machine) -> None:
    queue = machine.reporting
    for number in range(ROUNDS):
        give(machine, number % 64)
        kicked = queue.driver.needs_kick()
        if kicked:
            queue.kick()
        if not becomes_true(lambda: queue.take_used() is not None, 2.0):
            queue.kick()
            woke = becomes_true(lambda: queue.take_used() is not None, 2.0)
            raise Failed(
                f"buffer {number} did not come back; the driver {'kicked' if kicked else 'was not asked to kick'}, and "
                f"{'one more kick brought it' if woke else 'one more kick did not bring it either'}",
                "S-19",
                "P-15",
            )


@SUITE.case("indices-wrap", clauses=("S-16", "S-19"), edges=(96, 120))
def indices_wrap(trial: Trial) -> None:
    """When the indices pass 65535 no kick and no interrupt is lost."""
    machine = trial.vhost_user(size=64)
    queue = machine.reporting
    if not queue.event_idx:
        skip("the device does not offer EVENT_IDX")
    machine.stop(queue.index)
    queue.begin_at(NEAR_THE_WRAP)
    machine.start(queue.index, NEAR_THE_WRAP)
    for number in range(128):
        queue.take_interrupt()
        queue.driver.enable_interrupt()
        give(machine)
        if queue.driver.needs_kick():
            queue.kick()
        where = f"at index {queue.split.avail[1]}"
        require(queue.is_interrupted(), f"no interrupt {where}, which the driver asked for ({number})", "S-16")
        queue.collect()


@ring_case("kick-asked-for-when-idle", clauses=("S-19",), edges=(118,), quick=True)
def asks_when_idle(trial: Trial) -> None:
    """An idle device has said that it wants to be kicked for the next buffer, over a whole lap of the ring."""
    machine = trial.machine(size=16)
    queue = machine.reporting
    for number in range(40):
        give(machine)
        queue.driver.needs_kick()
        queue.kick()
        queue.collect()
        if not becomes_true(lambda: _asks(queue), 2.0):
            raise Failed(
                f"after {counted(number + 1, 'buffer')} the idle device does not ask for a kick: {_suppression(queue)}",
                "S-19",
                "P-15",
            )


def _asks(queue: DriverQueue) -> bool:
    # What the driver's half would answer after one more buffer, without adding one.
    full_fence()
    if queue.layout.packed:
        return queue.packed.device_event[0] >> 16 & 3 != RING_EVENT_FLAGS_DISABLE
    if not queue.event_idx:
        return not queue.split.used[0] & VIRTQ_USED_F_NO_NOTIFY
    return queue.split.used[queue.split.avail_event_at] == queue.split.avail[1]


def _suppression(queue: DriverQueue) -> str:
    if queue.layout.packed:
        return f"its event area is {queue.packed.device_event[0]:#010x}"
    ring = queue.split
    if not queue.event_idx:
        return f"used.flags is {ring.used[0]}"
    return f"avail_event is {ring.used[ring.avail_event_at]}, the available index {ring.avail[1]}"


@ring_case("kick-spurious", clauses=("S-21",), edges=(79,), quick=True)
def spurious(trial: Trial) -> None:
    """Kicks of an empty ring change nothing in it and stop nothing."""
    machine = trial.machine()
    queue = machine.reporting
    machine.report((DATA_AT, PAGE_SIZE))
    seen = _without_suppression(machine, queue)
    for _ in range(50):
        queue.kick()
    machine.barrier()
    require(queue.gives_nothing_back(0.05), "a kick without a buffer brought a used buffer", "S-21")
    require(_without_suppression(machine, queue) == seen, "kicks without a buffer changed the ring", "S-21")
    machine.check_alive()


def _without_suppression(machine: Machine, queue: DriverQueue) -> bytes:
    # The ring less the device's own word on kicks, which it may write whenever it likes.
    ring = machine.memory.read(queue.place, queue.layout.bytes)
    device = queue.layout.offsets[2]
    return ring[:device] if queue.layout.packed else ring[:device] + ring[device + 2 : -2]


@ring_case("interrupt-for-each", clauses=("S-16", "S-15", "P-14"), edges=(120,), quick=True)
def interrupt_for_each(trial: Trial) -> None:
    """A driver that asks for an interrupt after each buffer, with EVENT_IDX, gets one each time."""
    machine = trial.machine(wanted=QUIET)
    _interrupted_each_time(machine)


@ring_case("interrupt-without-event-idx", clauses=("S-15",), edges=(121,), quick=True)
def interrupt_without_event_idx(trial: Trial) -> None:
    """A driver that wants interrupts gets one for each buffer, without EVENT_IDX."""
    machine = trial.machine(wanted=WITHOUT_EVENT_IDX)
    ask_for_interrupt(machine.reporting, True)
    _interrupted_each_time(machine)


def _interrupted_each_time(machine: Machine) -> None:
    queue = machine.reporting
    for number in range(200):
        queue.take_interrupt()
        require(not queue.driver.enable_interrupt(), "a buffer came back that was not given", "S-17")
        give(machine, number % 64)
        if queue.driver.needs_kick():
            queue.kick()
        require(queue.is_interrupted(), f"no interrupt for buffer {number}, which the driver asked for", "S-16", "S-15")
        queue.collect()


@ring_case("interrupt-suppressed", clauses=("S-15", "P-14"), edges=(121,), quick=True)
def suppressed(trial: Trial) -> None:
    """A driver that wants no interrupts, without EVENT_IDX, gets none."""
    machine = trial.machine(wanted=WITHOUT_EVENT_IDX)
    queue = machine.reporting
    ask_for_interrupt(queue, False)
    queue.take_interrupt()
    for number in range(32):
        give(machine, number)
        queue.kick()
        queue.collect()
    machine.barrier()
    if queue.is_interrupted(0.05) and not machine.config_changed():  # which QEMU tells by both bits
        raise Found("the device interrupts although the driver asked it not to", "S-15", "P-16")


@ring_case("interrupt-when-crossed", clauses=("S-16",), edges=(120,), quick=True)
def when_crossed(trial: Trial) -> None:
    """With EVENT_IDX the device is silent until the used index passes used_event, and then interrupts."""
    machine = trial.machine(wanted=QUIET, size=32)
    queue = machine.reporting
    if not queue.event_idx:
        skip("the device does not offer EVENT_IDX")
    early = 0
    for lap in range(12):
        _ask_after(queue, 8 * lap, 8)
        queue.take_interrupt()
        for number in range(8):
            early += queue.take_interrupt() if number else 0
            give(machine, number)
            queue.kick()
            queue.collect()
        require(queue.is_interrupted(), f"no interrupt when the used index passed {8 * lap + 7}", "S-16", "P-16")
    if early:
        raise Found(f"{counted(early, 'interrupt')} of 84 came before the used index passed used_event", "S-16")


def _ask_after(queue: DriverQueue, used: int, count: int) -> None:
    # Ask for an interrupt with the `count`th buffer from the position `used` on.
    at = used + count - 1
    if queue.layout.packed:
        lap, index = divmod(at, queue.layout.size)
        queue.packed.driver_event[0] = event_word(index | (0x8000 if lap % 2 == 0 else 0), event_idx=True)
    else:
        queue.split.avail[queue.split.used_event_at] = at & 0xFFFF
    full_fence()


@ring_case("used-flags-with-event-idx", clauses=("S-20",), edges=(122,), quick=True)
def flags_with_event_idx(trial: Trial) -> None:
    """With EVENT_IDX used.flags stays 0, and without it is 0 or 1."""
    for wanted, allowed in ((WANTED, (0,)), (WITHOUT_EVENT_IDX, (0, 1))):
        machine = trial.machine(wanted=wanted)
        queue = machine.reporting
        if queue.layout.packed:
            skip("a packed ring has no used.flags")
        seen: set[int] = set()
        for number in range(64):
            give(machine, number)
            queue.kick()
            seen.add(queue.split.used[0])
            queue.collect()
            seen.add(queue.split.used[0])
        require(seen <= set(allowed), f"used.flags was {sorted(seen)}, allowed are {allowed}", "S-20")


@ring_case("used-ring-as-watched", clauses=("S-17", "P-5"), edges=(116, 117))
def as_watched(trial: Trial) -> None:
    """Another processor that looks at the ring all the time sees its index go up by one and each element whole."""
    machine = trial.machine(size=1024)
    queue = machine.reporting
    with RingWatcher(machine.memory, queue) as watcher:
        for number in range(queue.layout.size - 6):
            give(machine, number % 64)
            queue.kick()
            queue.collect()
        fault = watcher.stop()
    require(not fault, fault, "S-17", "P-5")
