"""Chains that no driver may make: a device that meets one may stop the queue, and harms nothing.

The text binds the driver here. A device that trusts it is one that a guest can break.
"""

import random
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.process.memory_fence import full_fence
from protocol.ring_formats import part_names
from protocol.split_ring import Descriptor
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonQueue
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
from scripts.check.device.trial import Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import WANTED, Machine
from scripts.check.machine.memory_file import DATA_AT, as_ranges
from scripts.check.machine.raw_ring import (
    Raw,
    is_dealt_with,
    publish_split,
    put_chain,
    put_packed,
    require_back,
    table_of,
    used_count,
)
from scripts.check.verdict import Found, require, skip

WRITE: Final = VIRTQ_DESC_F_WRITE
NEXT: Final = VIRTQ_DESC_F_NEXT
INDIRECT: Final = VIRTQ_DESC_F_INDIRECT

PAGES: Final = 32

WITHOUT_INDIRECT: Final = WANTED & ~feature_mask(FeatureBit.RING_INDIRECT_DESC)


def machine_with_pages(trial: Trial, *, indirect: bool = False, size: int = 128) -> Machine:
    """Return a machine with 32 pages in memory, of which the first may be reported; with INDIRECT_DESC if needed."""
    machine = trial.machine(size=size)
    if indirect and not machine.has(FeatureBit.RING_INDIRECT_DESC):
        skip("the device does not offer INDIRECT_DESC")
    machine.memory.touch(DATA_AT, PAGES * PAGE_SIZE)
    return machine


def _require_same(what: str, now: bytes, before: bytes, *clauses: str) -> None:
    # Check that the device wrote nothing there; the reason has the first 16 bytes that differ.
    at = next((at for at in range(0, len(before), 16) if now[at : at + 16] != before[at : at + 16]), 0)
    was, is_now = (data[at : at + 16].hex() for data in (before, now))
    require(now == before, f"the device wrote {what}: at {at:#x} it held {was} and holds {is_now}", *clauses)


def harms_nothing(
    machine: Machine,
    *clauses: str,
    may_go: frozenset[int] = frozenset({DATA_AT}),
    may_change: frozenset[int] = frozenset(),
) -> None:
    """Check, after a broken chain, that no page but ``may_go`` went and that another queue is still served.

    Pages that are there hold what they held, but for ``may_change``.

    Raises:
        Failed: a page is gone, or the device is.
    """
    pages = {DATA_AT + n * PAGE_SIZE for n in range(PAGES)}
    machine.barrier()
    lost = pages - machine.memory.present() - may_go
    require(not lost, f"pages are gone that were not given: {as_ranges(lost)}", "M-safe", *clauses)
    spoilt = machine.memory.spoilt((pages & machine.memory.present()) - may_change)
    require(not spoilt, f"pages changed: {as_ranges(spoilt)}", "M-safe", *clauses)
    if not machine.wants_reset() and not other_queue_is_served(machine):
        raise Found("a broken chain stops the other queues too, and the device does not ask for a reset", "G-2")


def other_queue_is_served(machine: Machine) -> bool:
    """Return whether the deflate queue still gives buffers back."""
    other = machine.queue(BalloonQueue.DEFLATE)
    other.offer_data(bytes(4))
    return becomes_true(lambda: other.take_used() is not None, 2.0)


def page(machine: Machine, number: int = 0) -> Raw:
    """Return a device-writable descriptor of one page."""
    return Raw(machine.address(DATA_AT + number * PAGE_SIZE), PAGE_SIZE, WRITE)


def put_table(machine: Machine, table: bytes, length: int | None = None, flags: int = 0) -> None:
    """Put a chain of one indirect descriptor that names ``table``, with another length if one is given."""
    queue = machine.reporting
    machine.memory.write(queue.tables, table)
    size = len(table) if length is None else length
    put_chain(queue, [Raw(machine.address(queue.tables), size, INDIRECT | flags)])


def judge(machine: Machine, *clauses: str) -> None:
    """Wait for what the device does with the chain, then check that nothing was harmed."""
    is_dealt_with(machine, machine.reporting, seconds=0.1)
    harms_nothing(machine, *clauses)


# -- indirect tables, in either format ------------------------------------------------------------------


@ring_case("chain-indirect-report", clauses=("S-10", "P-13"), edges=(104,), quick=True)
def indirect_report(trial: Trial) -> None:
    """A report of 32 pages in one indirect table takes 32 pages and comes back once."""
    machine = machine_with_pages(trial, indirect=True)
    put_table(machine, table_of([page(machine, n) for n in range(PAGES)], packed=trial.packed))
    require_back(machine.reporting, "a report in an indirect table", "S-11", "P-13")
    require(used_count(machine.reporting) == 1, "it came back more than once", "S-17")
    left = machine.memory.present() & {DATA_AT + n * PAGE_SIZE for n in range(PAGES)}
    if len(left) == PAGES:
        raise Found("the device acknowledged and discarded nothing", "F-discard")
    require(not left, f"pages of the table are still there: {as_ranges(left)}", "M-safe")


@ring_case("chain-indirect-write-flag", clauses=("S-10",), edges=(102,), quick=True)
def indirect_write_flag(trial: Trial) -> None:
    """WRITE on the descriptor that names the table is ignored."""
    machine = machine_with_pages(trial, indirect=True)
    put_table(machine, table_of([page(machine)], packed=trial.packed), flags=WRITE)
    require_back(machine.reporting, "a table that is named by a descriptor with WRITE", "S-10")
    harms_nothing(machine, "S-10")


@ring_case("chain-indirect-length", clauses=("S-6", "P-13"), edges=(98,))
def indirect_length(trial: Trial) -> None:
    """A table of no bytes, of no whole number of descriptors, or of 4 GiB harms nothing."""
    for length in (0, 1, 8, 15, 17, 24, 0xFFFF_FFF0, 0xFFFF_FFFF):
        machine = machine_with_pages(trial, indirect=True)
        put_table(machine, table_of([page(machine)], packed=trial.packed), length)
        judge(machine)


@ring_case("chain-indirect-in-indirect", clauses=("S-7", "P-13"), edges=(99,))
def indirect_in_indirect(trial: Trial) -> None:
    """A table that names a table harms nothing."""
    machine = machine_with_pages(trial, indirect=True)
    place = machine.address(machine.reporting.tables)
    put_table(machine, table_of([Raw(place, 16, INDIRECT), page(machine)], packed=trial.packed))
    judge(machine)


@ring_case("chain-indirect-and-next", clauses=("S-9", "P-13"), edges=(100,))
def indirect_and_next(trial: Trial) -> None:
    """INDIRECT and NEXT in one descriptor harm nothing."""
    machine = machine_with_pages(trial, indirect=True)
    queue = machine.reporting
    machine.memory.write(queue.tables, table_of([page(machine)], packed=trial.packed))
    put_chain(queue, [Raw(machine.address(queue.tables), 16, INDIRECT), page(machine, 0)])
    judge(machine)


@ring_case("chain-indirect-not-negotiated", clauses=("S-6", "P-13"), edges=(97,))
def indirect_not_negotiated(trial: Trial) -> None:
    """An indirect table of a driver that did not negotiate them harms nothing, its page included."""
    machine = trial.machine(wanted=WITHOUT_INDIRECT)
    machine.memory.touch(DATA_AT, PAGES * PAGE_SIZE)
    put_table(machine, table_of([page(machine)], packed=trial.packed))
    judge(machine)
    tables = machine.reporting.tables
    seen = machine.memory.read(tables, 16)
    at = machine.address(tables)
    require(any(seen), f"the table at {at:#x}, which no report named, was discarded: it holds {seen.hex()}", "M-safe")


@ring_case("chain-indirect-outside", clauses=("M-safe",), edges=(103,))
def indirect_outside(trial: Trial) -> None:
    """A table outside of the memory, over its end, or at an address that wraps harms nothing."""
    for place in ("outside", "over the end", "wraps"):
        machine = machine_with_pages(trial, indirect=True)
        end = machine.address(machine.memory.size)
        address = {"outside": end + PAGE_SIZE, "over the end": end - 16, "wraps": (1 << 64) - 16}[place]
        put_chain(machine.reporting, [Raw(address, 64, INDIRECT)])
        judge(machine)


@ring_case("chain-indirect-reports-itself", clauses=("M-safe", "F-ring"), edges=(103, 112))
def indirect_reports_itself(trial: Trial) -> None:
    """A table that names its own page harms nothing else."""
    machine = machine_with_pages(trial, indirect=True)
    place = machine.address(machine.reporting.tables)
    put_table(machine, table_of([Raw(place, PAGE_SIZE, WRITE), page(machine)], packed=trial.packed))
    judge(machine)


@ring_case("chain-indirect-longest", clauses=("S-8", "P-8", "F-indirect"), edges=(98,))
def indirect_longest(trial: Trial) -> None:
    """A table longer than the ring, which a driver must not make, is served, refused, or stops the queue."""
    machine = machine_with_pages(trial, indirect=True, size=16)
    put_table(machine, table_of([page(machine)] * 4096, packed=trial.packed))
    judge(machine)


# -- chains in the ring, in either format ---------------------------------------------------------------


@ring_case("chain-readable-after-writable", clauses=("S-3", "P-9"), edges=(106,), quick=True)
def readable_after_writable(trial: Trial) -> None:
    """A readable buffer after a writable one harms nothing."""
    machine = machine_with_pages(trial)
    put_chain(machine.reporting, [page(machine), Raw(machine.address(machine.reporting.buffers), 16, 0)])
    judge(machine)


@ring_case("chain-unknown-flags", clauses=("M-safe",))
def unknown_flags(trial: Trial) -> None:
    """Flags of a descriptor that have no meaning harm nothing."""
    for flags in (0x8, 0x40, 0x3F00):
        machine = machine_with_pages(trial)
        put_chain(machine.reporting, [page(machine)._replace(flags=WRITE | flags)])
        judge(machine)


@ring_case("chain-over-4-gib", clauses=("S-5", "P-8"), edges=(108,))
def over_four_gib(trial: Trial) -> None:
    """A chain of more than 2^32 bytes in sum harms nothing."""
    machine = machine_with_pages(trial)
    end = machine.address(machine.memory.size)
    put_chain(machine.reporting, [Raw(end, 0xFFFF_F000, WRITE)] * 4)
    judge(machine)


@ring_case("chain-table-unwritten", clauses=("S-4", "P-3", "M-safe"), edges=(114,))
def table_unwritten(trial: Trial) -> None:
    """The device writes no descriptor of a split ring or of an indirect table, and nothing in the driver's area."""
    machine = machine_with_pages(trial, indirect=True)
    queue = machine.reporting
    table = table_of([page(machine, n) for n in range(4)], packed=trial.packed)
    machine.memory.write(queue.tables, table)
    put_chain(queue, [Raw(machine.address(queue.tables), len(table), INDIRECT)], kick=False)
    ring = machine.memory.read(queue.place, 16 * queue.layout.size)
    area_at, area_bytes = queue.place + queue.layout.offsets[1], queue.layout.lengths[1]
    area = machine.memory.read(area_at, area_bytes)
    full_fence()
    queue.kick()
    require_back(queue, "a report in an indirect table", "S-11", "P-13")
    _require_same("an indirect table", machine.memory.read(queue.tables, len(table)), table, "S-4", "P-3")
    if not trial.packed:
        now = machine.memory.read(queue.place, 16 * queue.layout.size)
        _require_same("the descriptor table", now, ring, "S-4")
    name = part_names(packed=trial.packed)[1]
    _require_same(f"the {name}", machine.memory.read(area_at, area_bytes), area, "M-safe")


# -- rings of any content -------------------------------------------------------------------------------

GIVEN: Final = 8
"""The first pages of the 32, which the rings of :func:`any_content` may name, and so take."""

SEEDS: Final = 12


@ring_case("ring-any-content", clauses=("M-safe", "M-alive"), peers=("qemu/fuzz_71649", "cloud-hypervisor/fuzz"))
def any_content(trial: Trial) -> None:
    """Rings and tables of any content take no page that they do not name, and end no device."""
    given = frozenset(DATA_AT + n * PAGE_SIZE for n in range(GIVEN))
    for seed in range(SEEDS):
        for kind in (BalloonQueue.REPORTING, BalloonQueue.INFLATE):
            machine = machine_with_pages(trial, size=16)
            _fill(machine, machine.queue(kind), random.Random(seed))
            is_dealt_with(machine, machine.queue(kind), seconds=0.02)
            # A page that went and was read again, or went in part, is there and holds zeros.
            harms_nothing(machine, may_go=given, may_change=given)


def _fill(machine: Machine, queue: DriverQueue, content: random.Random) -> None:
    size = queue.layout.size
    table = [_anything(machine, queue, content) for _ in range(64)]
    following = [content.randrange(80) for _ in table]
    machine.memory.write(queue.tables, table_of(table, packed=queue.layout.packed, following=following))
    ring = [_anything(machine, queue, content) for _ in range(size)]
    if queue.layout.packed:
        put_packed(queue, ring, buffer_id=content.choice([0, 3, size, 0xFFFF]))
        queue.packed.driver_event[0] = content.getrandbits(32)
    else:
        for at, one in enumerate(ring):
            queue.split.write_descriptor(at, Descriptor(*one, content.choice([*range(size), size, 0xFFFF])))
        queue.split.avail[0] = content.choice([0, 1, 0xFFFF])
        heads = [content.choice([*range(size), size, 0xFFFF]) for _ in range(size)]
        publish_split(queue, heads, advance=content.choice([1, 2, size, size + 1, 0x8000, 0xFFFF]))
    full_fence()
    queue.kick()


def _anything(machine: Machine, queue: DriverQueue, content: random.Random) -> Raw:
    end = machine.address(machine.memory.size)
    flags = content.choice([0, NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, 0x3F78])
    match content.randrange(4):
        case 0:  # pages that may go, or a part of them
            at = DATA_AT + content.randrange(GIVEN - 2) * PAGE_SIZE + content.choice([0, 0, 0, 8, 2048])
            length = content.choice([0, 4, 16, 100, PAGE_SIZE, 2 * PAGE_SIZE - 1, 2 * PAGE_SIZE])
            return Raw(machine.address(at), min(length, DATA_AT + GIVEN * PAGE_SIZE - at), flags & ~INDIRECT)
        case 1:  # the table, whole or in part; one of no bytes, over which QEMU 7.2 ends, has a case of its own
            length = content.choice([8, 16, 48, 16 * 64, 16 * 64 - 8, 1 << 20])
            return Raw(machine.address(queue.tables + content.choice([0, 0, 16, 24])), length, flags & ~WRITE)
        case 2:  # what is no memory
            return Raw(end + content.getrandbits(30), content.getrandbits(32), flags)
        case _:
            return Raw((1 << 64) - content.randrange(1, 9000), content.getrandbits(32), flags)
