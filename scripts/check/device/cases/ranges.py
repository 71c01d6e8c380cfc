"""Reports of ranges that a driver must not report: what is around them stays, and the device goes on."""

from collections.abc import Sequence, Set
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio_ring import VIRTQ_DESC_F_WRITE
from scripts.check.device.cases.reporting import judge_discard, pages_of
from scripts.check.device.trial import Trial, ring_case
from scripts.check.machine.machine import Machine, Range
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges
from scripts.check.machine.raw_ring import IN_TIME, Raw, is_dealt_with, put_chain, used_element
from scripts.check.machine.vhost_user_device import GUEST_BASE, region_at
from scripts.check.verdict import Failed, Found, require

WRITE: Final = VIRTQ_DESC_F_WRITE
AROUND: Final = 32 * PAGE_SIZE


def prepared(trial: Trial) -> tuple[Machine, set[int]]:
    """Return a machine, and the pages of it that are there and must stay."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, AROUND)
    machine.memory.touch(machine.memory.size - AROUND, AROUND)
    return machine, machine.memory.present()


def put_and_look(machine: Machine, before: set[int], chain: Sequence[Raw], may_go: Set[int] = frozenset()) -> bool:
    """Put a chain on the reporting queue; check that no other page than ``may_go`` goes and that the device goes on.

    Return whether the chain came back. A driver such as Linux waits for it without an end, so a device that keeps a
    chain for a bad range costs the guest what else was in the report.
    """
    put_chain(machine.reporting, chain)
    back = is_dealt_with(machine, machine.reporting, IN_TIME)
    machine.barrier()
    after = machine.memory.present()
    if lost := before - after - may_go:
        raise Failed(f"pages that no report named are gone: {as_ranges(lost)}", "M-safe")
    if spoilt := machine.memory.spoilt(after & before):
        raise Failed(f"pages changed: {as_ranges(spoilt)}", "M-safe")
    if after - before:
        raise Failed(f"pages came into being: {as_ranges(after - before)}", "M-safe")
    if back:
        length = used_element(machine.reporting)[1]
        given = sum(one.length for one in chain) & 0xFFFF_FFFF
        require(length in (0, given), f"the used length is {length}", "S-17", "P-16")
    return back


def must_come_back(machine: Machine, back: bool, what: str) -> None:
    """Raise a finding unless the chain came back."""
    if back:
        return
    if machine.wants_reset():
        raise Found(f"over a report with {what} the device gives up and asks for a reset", "F-range")
    raise Found(f"a report with {what} does not come back: a driver that waits for it waits for ever", "F-range")


@ring_case("range-outside-memory", clauses=("M-safe", "F-range"), edges=(109,))
def outside(trial: Trial) -> None:
    """A range outside of the memory is skipped, and its report comes back."""
    machine, before = prepared(trial)
    end = machine.address(machine.memory.size)
    chain = [Raw(end, PAGE_SIZE, WRITE), Raw(end + (1 << 40), MIB, WRITE), Raw((1 << 63) + PAGE_SIZE, PAGE_SIZE, WRITE)]
    must_come_back(machine, put_and_look(machine, before, chain), "a range outside of the memory")


@ring_case("range-first-and-last", clauses=("BR-7", "F-discard"), quick=True)
def first_and_last(trial: Trial) -> None:
    """The first page of a region of the memory and its last one are pages as all others."""
    machine = trial.vhost_user()
    last = machine.memory.size - PAGE_SIZE
    for page in (0, last):
        machine.memory.touch(page, PAGE_SIZE)
    for given in (0, last):
        machine.report((given, PAGE_SIZE))
        if given in machine.memory.present(given, given + PAGE_SIZE):
            which = "last" if given else "first"
            raise Found(f"the {which} page of the region is acknowledged and not discarded", "F-discard")


@ring_case("range-good-beside-bad", clauses=("M-safe", "F-range"), edges=(109,), quick=True)
def good_beside_bad(trial: Trial) -> None:
    """The good ranges of a report with a bad one keep their meaning, or all are left."""
    machine, before = prepared(trial)
    end = machine.address(machine.memory.size)
    given = [(DATA_AT, PAGE_SIZE), (DATA_AT + 4 * PAGE_SIZE, PAGE_SIZE)]
    first, second = (Raw(*one, WRITE) for one in machine.buffers(given))
    back = put_and_look(machine, before, [first, Raw(end, PAGE_SIZE, WRITE), second], pages_of(*given))
    must_come_back(machine, back, "one range outside of the memory")
    if kept := machine.memory.present() & pages_of(*given):
        raise Found(f"one bad range of a report makes the device leave {as_ranges(kept)}, which were good", "F-range")


@ring_case("range-over-the-end", clauses=("M-safe", "F-range"), edges=(110,), quick=True)
def over_the_end(trial: Trial) -> None:
    """A range that begins in the memory and ends outside takes pages of its own at most."""
    machine, before = prepared(trial)
    start = machine.memory.size - 2 * PAGE_SIZE
    back = put_and_look(
        machine,
        before,
        [Raw(machine.address(start), 16 * PAGE_SIZE, WRITE)],
        pages_of((start, 2 * PAGE_SIZE)),
    )
    must_come_back(machine, back, "a range that ends outside of the memory")


@ring_case("range-wraps", clauses=("M-safe", "F-range"), edges=(108,))
def wraps(trial: Trial) -> None:
    """A range whose end is beyond 2^64 takes nothing."""
    machine, before = prepared(trial)
    top = 1 << 64
    for chain in (
        [Raw(top - PAGE_SIZE, 2 * PAGE_SIZE, WRITE)],
        [Raw(top - PAGE_SIZE, 0xFFFF_F000, WRITE)],
        [Raw(machine.address(DATA_AT), 0xFFFF_F000, WRITE)],
    ):
        machine, before = prepared(trial)
        put_and_look(machine, before, chain, before if chain[0].address < top - PAGE_SIZE else set())


@ring_case("range-unaligned", clauses=("M-safe", "F-alignment"), edges=(111,), peers=("villain/L0029",), quick=True)
def unaligned(trial: Trial) -> None:
    """A range that begins or ends within a page takes whole pages inside of it at most, and zeroes no part of one."""
    for offset, length in (
        (DATA_AT + 512, PAGE_SIZE),
        (DATA_AT + 512, 4 * PAGE_SIZE),
        (DATA_AT, 100),
        (DATA_AT + PAGE_SIZE, PAGE_SIZE + 1),
        (DATA_AT + PAGE_SIZE - 1, PAGE_SIZE + 2),
        (DATA_AT + 8, 3 * PAGE_SIZE - 16),
    ):
        machine, before = prepared(trial)
        first = -(-offset // PAGE_SIZE) * PAGE_SIZE
        inner = set(range(first, (offset + length) // PAGE_SIZE * PAGE_SIZE, PAGE_SIZE))
        back = put_and_look(machine, before, [Raw(machine.address(offset), length, WRITE)], inner)
        must_come_back(machine, back, f"{length} bytes at an offset of {offset % PAGE_SIZE} in a page")


@ring_case("range-high-bits", clauses=("M-safe", "F-range"), edges=(108, 109))
def high_bits(trial: Trial) -> None:
    """No bit of an address or a length is dropped: with a high bit set a range is another one."""
    for address_bit, length_bit in ((32, None), (36, None), (44, None), (48, None), (52, None), (63, None), (None, 31)):
        machine, before = prepared(trial)
        address, length = machine.address(DATA_AT), PAGE_SIZE
        if address_bit is not None:
            address ^= 1 << address_bit
        if length_bit is not None:
            length |= 1 << length_bit
        may_go = before if length_bit is not None else set()
        put_and_look(machine, before, [Raw(address, length, WRITE)], may_go)
        left = machine.memory.present()
        require(
            length_bit is None or DATA_AT in left or DATA_AT + 4 * PAGE_SIZE not in left,
            f"of {length:#x} bytes only the first page was discarded: the top bit was dropped",
            "M-safe",
        )


@ring_case("range-unaligned-is", clauses=("F-alignment",), edges=(111,))
def unaligned_is(trial: Trial) -> None:
    """What becomes of a range of four pages that begins within a page: a finding."""
    machine, before = prepared(trial)
    put_and_look(
        machine,
        before,
        [Raw(machine.address(DATA_AT + 512), 4 * PAGE_SIZE, WRITE)],
        set(range(DATA_AT + PAGE_SIZE, DATA_AT + 4 * PAGE_SIZE, PAGE_SIZE)),
    )
    gone = len(before - machine.memory.present())
    raise Found(f"of 16 KiB that begin 512 bytes into a page, the device discards {gone} whole pages", "F-alignment")


@ring_case("range-empty", clauses=("M-safe", "F-empty"), edges=(107,), peers=("villain/L0024",))
def empty(trial: Trial) -> None:
    """A range of no bytes takes nothing, and a good one beside it keeps its meaning or is left."""
    machine, before = prepared(trial)
    good = Raw(machine.address(DATA_AT), PAGE_SIZE, WRITE)
    back = put_and_look(machine, before, [Raw(machine.address(DATA_AT + 4 * PAGE_SIZE), 0, WRITE), good], {DATA_AT})
    if not back:
        then = "the device asks for a reset" if machine.wants_reset() else "the device says nothing"
        raise Found(f"a chain with a buffer of no bytes does not come back, and {then}", "F-empty")


@ring_case("range-readable", clauses=("M-safe", "F-direction"), edges=(105,), quick=True)
def readable(trial: Trial) -> None:
    """A report in device-readable buffers comes back; whether its pages go is a finding."""
    machine, before = prepared(trial)
    given = {DATA_AT + n * PAGE_SIZE for n in range(4)}
    back = put_and_look(machine, before, [Raw(machine.address(DATA_AT), 4 * PAGE_SIZE, 0)], given)
    kept = machine.memory.present() & given
    if not back:
        raise Found("a report in device-readable buffers does not come back", "F-direction")
    does = "leaves" if kept else "discards"
    raise Found(f"the device {does} pages that are reported in device-readable buffers", "F-direction")


@ring_case("range-of-the-ring", clauses=("M-safe", "F-ring"), edges=(112,))
def of_the_ring(trial: Trial) -> None:
    """A report of the ring's own pages costs that machine at most, and no page that is in use elsewhere."""
    machine, before = prepared(trial)
    queue = machine.reporting
    end = -(-queue.layout.bytes // PAGE_SIZE) * PAGE_SIZE
    back = put_and_look(machine, before, [Raw(machine.address(queue.place), end, WRITE)])
    ring = machine.memory.present(queue.place, queue.place + end)
    if len(ring) < end // PAGE_SIZE:
        raise Found("the device discards pages of its own ring, which then is empty", "F-ring")
    must_come_back(machine, back, "the pages of its own ring")


@ring_case("range-of-another-ring", clauses=("M-safe", "F-ring"), edges=(112,))
def of_another_ring(trial: Trial) -> None:
    """A report of the pages of another queue's ring does not end the device."""
    machine, before = prepared(trial)
    other = next(queue for queue in machine.queues.values() if queue is not machine.reporting)
    end = -(-other.layout.bytes // PAGE_SIZE) * PAGE_SIZE
    put_and_look(machine, before, [Raw(machine.address(other.place), end, WRITE)])
    if len(machine.memory.present(other.place, other.place + end)) < end // PAGE_SIZE:
        raise Found("the device discards pages of another queue's ring", "F-ring")


@ring_case("range-of-all-memory", clauses=("M-safe",), edges=(112,), peers=("villain/L0025",))
def of_all_memory(trial: Trial) -> None:
    """A report of the whole memory, rings included, comes back or costs that machine alone."""
    machine, before = prepared(trial)
    put_and_look(machine, before, [Raw(machine.address(0), machine.memory.size, WRITE)], before)


@ring_case("range-many-tiny", clauses=("M-safe", "F-alignment"), edges=(111,), peers=("stratovirt/fpr_001",))
def many_tiny(trial: Trial) -> None:
    """A chain as long as the ring, of pieces of a page each, takes no page."""
    machine, before = prepared(trial)
    pieces = [Raw(machine.address(DATA_AT + 64 * n), 64, WRITE) for n in range(machine.reporting.layout.size)]
    must_come_back(machine, put_and_look(machine, before, pieces), "many pieces of pages")


@ring_case("range-neighbours-in-chain", clauses=("M-safe", "BR-7"))
def neighbours(trial: Trial) -> None:
    """Ranges that touch each other, in any order, are taken as they are: no more and no less."""
    machine, before = prepared(trial)
    given = [(DATA_AT + n * PAGE_SIZE, PAGE_SIZE) for n in (3, 1, 2, 7, 6, 4)]
    machine.report(*given)
    judge_discard(machine, before, pages_of(*given))


@ring_case("range-in-each-region", clauses=("M-safe", "F-discard"), quick=True)
def in_each_region(trial: Trial) -> None:
    """In memory of three regions, not in the order of their addresses or offsets, exactly the reported pages go."""
    machine = trial.vhost_user(run=False)
    size = machine.memory.size
    parts = [(size * 3 // 4, size // 4, 0x4000_0000), (0, size // 2, GUEST_BASE), (size // 2, size // 4, 0x2_8000_0000)]
    machine.regions = tuple(region_at(*part) for part in parts)
    machine.run()
    given: list[Range] = []
    buffers: list[Range] = []
    for offset, length, address in parts:
        for at in (max(DATA_AT, offset), offset + length // 2, offset + length - 4 * PAGE_SIZE):
            machine.memory.touch(at, 4 * PAGE_SIZE)
            given.append((at, PAGE_SIZE))
            buffers.append((address + at - offset, PAGE_SIZE))
    before = machine.memory.present()
    machine.reporting.offer((), buffers)
    machine.reporting.collect()
    judge_discard(machine, before, pages_of(*given))
