"""Features, bringing up, reset: what a device does before it is served, and after it was told to stop."""

import struct
from contextlib import closing, suppress

from protocol.errors import BalloonError, VhostUserError
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import (
    PFN_SHIFT,
    BalloonFeature,
    BalloonQueue,
    QueueDialect,
    feature_bit_names,
    queue_numbers,
)
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.machine import WANTED, Machine
from scripts.check.machine.memory_file import DATA_AT, MemoryFile, as_ranges
from scripts.check.machine.raw_ring import Raw, comes_back, put_chain, require_back
from scripts.check.machine.vhost_user_device import VhostUserMachine
from scripts.check.verdict import Failed, Found, HungUpError, TargetError, require, skip


@SUITE.case("features-offered", clauses=("G-7", "G-22"), edges=(32,), quick=True)
def offered(trial: Trial) -> None:
    """VERSION_1 is offered, and the offer is the same each time it is asked for."""
    machine = trial.machine()
    machine.barrier()
    require(
        has_feature(trial.device.offered, FeatureBit.VERSION_1),
        f"VERSION_1 is not offered: {trial.device.offered:#x}",
        "G-22",
    )


@SUITE.case(
    "features-subset",
    clauses=("G-8",),
    edges=(33,),
    peers=("firecracker/virtio_features", "stratovirt/feature_001"),
    quick=True,
)
def subset(trial: Trial) -> None:
    """Every offered feature may be left out, one at a time, and all of them but VERSION_1."""
    device = trial.device
    bits = [bit for bit in range(41) if has_feature(device.offered & WANTED, bit) and bit != FeatureBit.VERSION_1]
    for wanted in [WANTED & ~(1 << bit) for bit in bits] + [feature_mask(FeatureBit.VERSION_1)]:
        names = ", ".join(feature_bit_names(device.offered & WANTED & ~wanted))
        try:
            machine = trial.machine(wanted=wanted, dialect=QueueDialect.NEGOTIATED)
        except BalloonError as error:
            raise Found(f"without {names} the device cannot be brought up: {error}", "G-8") from error
        machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
        machine.inflate(DATA_AT)
        left = machine.memory.present(DATA_AT, DATA_AT + 4 * PAGE_SIZE)
        require(len(left) >= 3, f"without {names} an inflated page took {as_ranges(left)} along", "M-safe")


@SUITE.case("queues-as-numbered", clauses=("F-queue-numbers",), edges=(89, 90), quick=True)
def as_numbered(trial: Trial) -> None:
    """Which number the reporting queue has when statistics or hints are not negotiated: a finding."""
    if not has_feature(trial.device.offered, BalloonFeature.PAGE_REPORTING):
        skip("the device does not offer PAGE_REPORTING")
    seen = {}
    for without in (BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT):
        if has_feature(trial.device.offered, without):
            wanted = WANTED & ~feature_mask(without)
            seen[without.name] = _dialects_that_work(trial, wanted)
    if not seen:
        skip("the device offers neither statistics nor hints: all ways to number agree")
    words = "; ".join(f"without {name}: {' and '.join(found) or 'none works'}" for name, found in seen.items())
    raise Found(f"queues are numbered as {words}", "F-queue-numbers")


def _dialects_that_work(trial: Trial, wanted: int) -> list[str]:
    offered = trial.device.offered
    numbers: dict[int, QueueDialect] = {}
    for dialect in QueueDialect:
        order = queue_numbers(dialect, negotiated=offered & wanted, offered=offered)
        index = next(index for index, kind in order.items() if kind is BalloonQueue.REPORTING)
        numbers.setdefault(index, dialect)
    return [f"{index} ({dialect.value})" for index, dialect in numbers.items() if _serves(trial, wanted, dialect)]


def _serves(trial: Trial, wanted: int, dialect: QueueDialect) -> bool:
    try:
        machine = trial.machine(wanted=wanted, dialect=dialect)
        machine.memory.touch(DATA_AT, PAGE_SIZE)
        machine.reporting.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
        machine.reporting.kick()
        return becomes_true(lambda: DATA_AT not in machine.memory.present(), 0.5)
    except (BalloonError, Failed):
        return False


@ring_case("before-running", clauses=("G-1",), edges=(81,), peers=("public/rust-vmm-vhost-374",), quick=True)
def before_running(trial: Trial) -> None:
    """Nothing is taken from a ring before the device is to serve it; then it is, without another kick."""
    machine = trial.machine(run=False)
    machine.memory.touch(DATA_AT, 2 * PAGE_SIZE)
    put_chain(machine.reporting, [Raw(machine.address(DATA_AT), PAGE_SIZE, 2)], kick=False)
    machine.barrier()
    early = {DATA_AT} - machine.memory.present()
    require(not early, "a page was discarded before the device was told to run", "G-1")
    require(not comes_back(machine.reporting, seconds=0.05), "a buffer was used before DRIVER_OK", "G-1")
    machine.run()
    machine.reporting.kick()
    require_back(machine.reporting, "a buffer that was there before the device ran", "G-1")


@ring_case("reset-stops", clauses=("G-10", "G-11"), edges=(87, 88), peers=("public/cloud-hypervisor-1120",), quick=True)
def reset_stops(trial: Trial) -> None:
    """After a reset the device touches neither rings nor pages, whatever is in the rings."""
    machine = trial.machine()
    machine.report((DATA_AT, PAGE_SIZE))
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.memory.present()
    machine.reset()
    machine.reporting.driver.add((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    ring = machine.memory.read(machine.reporting.place, machine.reporting.layout.bytes)
    machine.reporting.kick()
    machine.barrier()
    _untouched(machine, ring)
    machine.check_gone(before, set(), "G-11")


def _untouched(machine: Machine, ring: bytes) -> None:
    queue = machine.reporting
    require(queue.gives_nothing_back(0.1), "the device used a buffer after the reset", "G-11")
    now = machine.memory.read(queue.place, queue.layout.bytes)
    require(now == ring, "the device wrote into the ring after the reset", "G-11")


@ring_case("reset-in-mid-report", clauses=("G-11", "M-safe"), edges=(49, 88), peers=("public/openvmm-3915",))
def reset_in_mid_report(trial: Trial) -> None:
    """What the driver writes after a reset stays, also when a large report was on its way."""
    block = 4 << 20
    machine = trial.machine()
    for number in range(8):
        machine.memory.touch(DATA_AT + number * block, block)
    machine.reporting.offer((), machine.buffers((DATA_AT + n * block, block) for n in range(8)))
    machine.reset()
    machine.memory.touch(DATA_AT, 64 * PAGE_SIZE)
    machine.memory.touch(DATA_AT + 7 * block, 64 * PAGE_SIZE)
    again = {DATA_AT + n * PAGE_SIZE for n in range(64)} | {DATA_AT + 7 * block + n * PAGE_SIZE for n in range(64)}
    machine.barrier()
    if not becomes_true(lambda: bool(machine.memory.spoilt(again)), 0.1):
        return
    raise Failed(f"pages changed after the reset: {as_ranges(machine.memory.spoilt(again))}", "G-11")


@SUITE.case(
    "brought-up-again",
    clauses=("G-10", "F-actual"),
    edges=(148,),
    peers=("tp-qemu/balloon_hotplug", "tp-qemu/driver_load"),
    quick=False,
)
def brought_up_again(trial: Trial) -> None:
    """The device can be brought up many times, each time with empty rings and a balloon of size 0."""
    left = 0
    for _ in range(8):
        machine = trial.machine()
        left = int.from_bytes(machine.read_config(4, 4), "little") or left
        machine.write_config(4, b"\x10\0\0\0")
        machine.check_alive()
    if left:
        raise Found(f"a driver that has just begun finds actual at {left}, which the last one wrote", "F-actual")


@SUITE.case("broken-ring-asks-for-reset", clauses=("G-2", "G-3"), quick=True)
def asks_for_reset(trial: Trial) -> None:
    """A device that gave a ring up says that it needs a reset, and serves after one."""
    machine = trial.machine()
    machine.needs_reset()
    queue = machine.reporting
    queue.split.avail[2] = 0xFFFF
    queue.split.avail[1] = 1
    queue.kick()
    machine.barrier()
    if not becomes_true(machine.needs_reset, 1.0):
        raise Found("the device does not ask for a reset after a head beyond the table", "G-2")
    trial.machine().check_alive()


@ring_case("memory-truncated", clauses=("M-alive",), edges=(56,))
def memory_truncated(trial: Trial) -> None:
    """A front-end that truncates its memory, under its pages or under its rings, costs its own session at most."""
    for size in (DATA_AT, 0):
        if not _truncated_beside_another(trial, size):
            _truncate(trial.vhost_user(memory=MemoryFile(shrinkable=True)), size)
        trial.machine().check_alive()


def _truncated_beside_another(trial: Trial, size: int) -> bool:
    # Whether the back-end serves two at a time.
    with closing(trial.vhost_user_device.machine(packed=trial.packed)) as other:
        try:
            machine = trial.vhost_user(memory=MemoryFile(shrinkable=True))
        except (Failed, HungUpError, TargetError):
            return False
        _truncate(machine, size)
        other.check_alive()
    return True


def _truncate(machine: VhostUserMachine, size: int) -> None:
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    number = struct.pack("<I", machine.address(DATA_AT) >> PFN_SHIFT)
    machine.memory.write(DATA_AT + PAGE_SIZE, number)
    machine.reporting.driver.add((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    machine.queue(BalloonQueue.INFLATE).driver.add([(machine.address(DATA_AT + PAGE_SIZE), 4)], ())
    machine.memory.truncate(size)
    for queue in machine.queues.values():
        queue.kick()
    with suppress(HungUpError, Failed):  # it may end the session of such a front-end
        machine.barrier()


@ring_case(
    "report-not-negotiated", clauses=("M-safe", "F-uninvited"), edges=(33,), peers=("villain/L0022",), quick=True
)
def report_not_negotiated(trial: Trial) -> None:
    """A ring at the number of the reporting queue without PAGE_REPORTING is refused, or has no effect."""
    reporting = feature_mask(BalloonFeature.PAGE_REPORTING)
    if not trial.device.offered & reporting:
        skip("the device does not offer PAGE_REPORTING")
    machine = trial.machine(wanted=WANTED & ~reporting, uninvited=reporting, run=False)
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    try:
        machine.run()
    except VhostUserError:
        trial.machine().check_alive()
        return
    machine.reporting.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    machine.barrier()
    machine.reporting.gives_nothing_back(0.2)
    gone = before - machine.memory.present()
    require(gone <= {DATA_AT}, f"pages that were not given are gone: {as_ranges(gone - {DATA_AT})}", "M-safe")
    machine.check_survives()
    if gone:
        raise Found("the reporting queue of a driver without PAGE_REPORTING discards what is on it", "F-uninvited")
