"""Free page reporting: what goes, when it goes, and that nothing else does."""

from typing import Final

from guest.virtqueue.virtqueue import UsedBuffer
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from scripts.check.device.trial import Trial, ring_case
from scripts.check.machine.deadline import stays_true
from scripts.check.machine.machine import Machine, Range
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges, page_pattern
from scripts.check.verdict import Failed, Found, require, skip

KIB: Final = 1024
BLOCK: Final = 4 * MIB
"""What Linux reports on x86-64 and under User Mode Linux with 4 MiB page blocks, at most 32 of them in a chain."""


LATE: Final = 0.03
"""Seconds after the last acknowledgement for which a late discard is waited for."""


def pages_of(*ranges: Range) -> set[int]:
    """Return the offsets of the pages of ranges."""
    return {at for offset, length in ranges for at in range(offset, offset + length, PAGE_SIZE)}


def judge_discard(machine: Machine, before: set[int], given: set[int]) -> None:
    """Judge what a device did to the pages ``given`` of those that were there ``before``.

    A device may leave all of them: the text allows to discard and does not demand it. One that takes a part of a range
    has a fault, whichever part it is.
    """
    kept = machine.memory.present() & given
    if kept == given:
        raise Found(f"the device acknowledged and discarded nothing: {as_ranges(kept)} are still there", "F-discard")
    machine.check_gone(before, given, "M-safe")


def check_used_length(used: UsedBuffer, given: int) -> None:
    """Judge the used length of a report of ``given`` bytes: a device that wrote nothing says 0."""
    if used.length == 0:
        return
    if used.length == given:
        raise Found(
            f"the used length of a report is {given}, the sum of its buffers, although nothing was written there",
            "F-used-length",
        )
    raise Failed(f"the used length of a report of {given} bytes is {used.length} instead of 0", "S-17", "P-16")


@ring_case(
    "report-exact",
    clauses=("BR-7", "M-safe", "S-17", "P-16", "F-discard", "F-used-length"),
    edges=(104, 115, 126),
    peers=("firecracker/size_reduction",),
    quick=True,
)
def report_exact(trial: Trial) -> None:
    """Of the pages in memory exactly those of a report are discarded, and its used length is 0."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, MIB)
    before = machine.memory.present()
    given: list[Range] = [(DATA_AT + 64 * KIB * n, 16 * KIB) for n in range(3, 12)]
    used = machine.report(*given)
    judge_discard(machine, before, pages_of(*given))
    check_used_length(used, sum(length for _, length in given))


@ring_case("report-one-page", clauses=("BR-7", "M-safe"), edges=(153,), peers=("villain/L0023",), quick=True)
def report_one_page(trial: Trial) -> None:
    """A report of one page between two others takes that one, at the start and at the end of the memory too."""
    machine = trial.machine()
    for offset in (DATA_AT + PAGE_SIZE, machine.memory.size - 2 * PAGE_SIZE):
        machine.memory.touch(offset - PAGE_SIZE, 3 * PAGE_SIZE)
        before = machine.memory.present()
        machine.report((offset, PAGE_SIZE))
        judge_discard(machine, before, {offset})


@ring_case("report-last-page-of-memory", clauses=("M-safe",))
def report_last_page(trial: Trial) -> None:
    """The very last page of the memory can be reported."""
    machine = trial.machine()
    last = machine.memory.size - PAGE_SIZE
    machine.memory.touch(last - PAGE_SIZE, 2 * PAGE_SIZE)
    before = machine.memory.present()
    machine.report((last, PAGE_SIZE))
    judge_discard(machine, before, {last})


@ring_case(
    "report-as-linux",
    clauses=("BR-3", "BR-7"),
    edges=(104, 126),
    peers=(
        "firecracker/process_reporting",
        "tp-qemu/balloon_check.free",
        "tp-libvirt/freepagereporting",
        "cloud-hypervisor/free_page_reporting",
    ),
    quick=True,
)
def report_as_linux(trial: Trial) -> None:
    """Blocks of 4 MiB as Linux reports them are gone when the used entry is there, not later."""
    machine = trial.machine()
    given: list[Range] = [(DATA_AT + 2 * BLOCK * n, BLOCK) for n in range(8)]
    for offset, length in given:
        machine.memory.touch(offset, length + PAGE_SIZE)
    before = machine.memory.present()
    machine.reporting.offer((), machine.buffers(given))
    machine.reporting.collect()
    at_once = machine.memory.present() & pages_of(*given)
    machine.barrier()
    judge_discard(machine, before, pages_of(*given))
    require(
        not at_once,
        f"the report was acknowledged while {len(at_once)} of its pages were still there and went later: a driver "
        f"that used {as_ranges(at_once)} meanwhile has lost data",
        "BR-3",
    )


@ring_case("report-order-within", clauses=("BR-3", "S-22"), edges=(126,))
def acknowledged_after_each(trial: Trial) -> None:
    """Of several chains each is acknowledged when its own pages are gone."""
    machine = trial.machine()
    queue = machine.reporting
    given: list[Range] = [(DATA_AT + BLOCK * n, BLOCK // 2) for n in range(12)]
    for offset, length in given:
        machine.memory.touch(offset, length)
    heads = {machine.reporting.driver.add((), machine.buffers([one])): one for one in given}
    queue.kick()
    late: set[int] = set()
    while heads:
        used = queue.collect()[0]
        late |= machine.memory.present() & pages_of(heads.pop(used.head))
    machine.barrier()
    left = machine.memory.present() & pages_of(*given)
    require(late <= left, f"acknowledged before they were discarded: {as_ranges(late - left)}", "BR-3")


@ring_case(
    "report-content-after", clauses=("BR-1", "BR-7"), edges=(126,), peers=("firecracker/memory_scrub",), quick=True
)
def content_after(trial: Trial) -> None:
    """A reported page reads as zeros when it is touched again, and the pages around it as before."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    machine.report((DATA_AT + 4 * PAGE_SIZE, 4 * PAGE_SIZE))
    for number in range(16):
        at = DATA_AT + number * PAGE_SIZE
        seen = machine.memory.map[at : at + PAGE_SIZE]
        if not 4 <= number < 8:
            require(seen == page_pattern(at), f"the page at {at:#x} changed, which was not reported", "M-safe")
        elif seen == page_pattern(at):
            raise Found("reported pages keep their content", "F-discard")
        elif seen != bytes(PAGE_SIZE):
            raise Found(
                f"a reported page holds {seen[:16].hex()}... afterwards: neither zeros nor what it held", "BR-7"
            )


@ring_case("report-no-late-discard", clauses=("BR-3", "BR-7"), edges=(131,), quick=True)
def no_late_discard(trial: Trial) -> None:
    """What a driver writes into a page after its report was acknowledged stays."""
    machine = trial.machine()
    for turn in range(24):
        offset = DATA_AT + turn * BLOCK
        machine.memory.touch(offset, MIB)
        machine.report((offset, MIB))
        machine.memory.touch(offset, MIB)
    machine.barrier()
    given = pages_of(*((DATA_AT + turn * BLOCK, MIB) for turn in range(24)))
    stays_true(lambda: given <= machine.memory.present(), LATE)
    lost = machine.memory.spoilt(given)
    require(not lost, f"pages were discarded after the acknowledgement: {as_ranges(lost)}", "BR-3")


@ring_case("report-already-empty", clauses=("M-safe",), edges=(154,), quick=True)
def already_empty(trial: Trial) -> None:
    """A report of pages that are not there comes back and brings none into being."""
    machine = trial.machine()
    before = machine.memory.present()
    machine.report((DATA_AT, 32 * MIB))
    machine.check_gone(before, set(), "M-safe")


@ring_case("report-duplicates", clauses=("M-safe", "F-duplicates"), edges=(113,))
def duplicates(trial: Trial) -> None:
    """A range that occurs twice in a report, or overlaps another, does no harm."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 64 * PAGE_SIZE)
    before = machine.memory.present()
    given: list[Range] = [
        (DATA_AT, 8 * PAGE_SIZE),
        (DATA_AT, 8 * PAGE_SIZE),
        (DATA_AT + 4 * PAGE_SIZE, 8 * PAGE_SIZE),
    ]
    machine.report(*given)
    judge_discard(machine, before, pages_of(*given))
    machine.check_alive()


@ring_case("report-many-rounds", clauses=("S-17", "P-16"), edges=(96, 123))
def many_rounds(trial: Trial) -> None:
    """The ring wraps many times: each report comes back once, takes its page, and no other."""
    machine = trial.machine(size=8)
    keep = DATA_AT + MIB
    machine.memory.touch(keep, 4 * PAGE_SIZE)
    for turn in range(400):
        offset = DATA_AT + PAGE_SIZE * (turn % 16)
        machine.memory.touch(offset, PAGE_SIZE)
        check_used_length(machine.report((offset, PAGE_SIZE)), PAGE_SIZE)
        if turn % 16 == 15:
            left = machine.memory.present() - pages_of((keep, 4 * PAGE_SIZE))
            require(len(left) in (0, 16), f"after {turn + 1} reports {as_ranges(left)} are left", "M-safe")


@ring_case("report-full-ring", clauses=("S-22", "P-2"), edges=(96,))
def full_ring(trial: Trial) -> None:
    """A ring full of reports comes back whole, each buffer once."""
    machine = trial.machine(size=64)
    queue = machine.queue(BalloonQueue.REPORTING)
    machine.memory.touch(DATA_AT, 256 * PAGE_SIZE)
    before = machine.memory.present()
    given: list[Range] = [(DATA_AT + 2 * n * PAGE_SIZE, PAGE_SIZE) for n in range(queue.layout.size)]
    heads = [queue.add((), machine.buffers([one])) for one in given]
    queue.kick()
    came = [used.head for used in queue.collect(len(heads))]
    require(sorted(came) == sorted(heads), f"buffers {sorted(heads)} were given, {sorted(came)} came back", "S-17")
    judge_discard(machine, before, pages_of(*given))


@ring_case("report-of-many-ranges", clauses=("M-safe", "S-17", "P-16", "F-discard"), quick=True)
def many_ranges(trial: Trial) -> None:
    """A report of as many ranges as a ring has entries is taken whole: no text says that there are at most 32."""
    machine = trial.machine()
    count = machine.reporting.layout.size
    machine.memory.touch(DATA_AT, 2 * count * PAGE_SIZE)
    before = machine.memory.present()
    given: list[Range] = [(DATA_AT + 2 * n * PAGE_SIZE, PAGE_SIZE) for n in range(count)]
    check_used_length(machine.report(*given), count * PAGE_SIZE)
    judge_discard(machine, before, pages_of(*given))


@ring_case("report-of-a-large-range", clauses=("M-safe", "F-discard"), quick=True)
def large_range(trial: Trial) -> None:
    """A range of 96 MiB is taken whole, and no page beside it: blocks are not of 4 MiB everywhere."""
    machine = trial.machine()
    start, end = DATA_AT + PAGE_SIZE, DATA_AT + 96 * MIB + PAGE_SIZE
    there = [start - PAGE_SIZE, start, start + 4 * MIB, start + 64 * MIB, end - PAGE_SIZE, end]
    for at in there:
        machine.memory.touch(at, PAGE_SIZE)
    machine.report((start, end - start))
    judge_discard(machine, set(there), set(there[1:-1]))


@ring_case("report-sealed-memory", clauses=("M-alive", "M-safe", "F-discard"), edges=(57, 129), quick=True)
def sealed_memory(trial: Trial) -> None:
    """Reports and inflates of memory in which the kernel refuses holes come back, with used length 0."""
    machine = trial.vhost_user()
    machine.memory.touch(DATA_AT, 32 * PAGE_SIZE)
    before = machine.memory.present()
    try:
        machine.memory.seal_against_writing()
    except OSError as error:
        skip(f"the kernel cannot seal memory against writing: {error.strerror}")
    given = (DATA_AT, 8 * PAGE_SIZE)
    for turn in range(3):
        try:
            used = machine.report(given)
            machine.inflate(DATA_AT + 16 * PAGE_SIZE)
        except Failed as failed:
            raise Found(
                f"in memory that is sealed against writing a discard fails, and chain {turn + 1} does not come back: "
                f"{failed.reason}",
                "F-discard",
            ) from failed
        check_used_length(used, given[1])
    lost = before - machine.memory.present() - pages_of(given) - {DATA_AT + 16 * PAGE_SIZE}
    require(not lost, f"pages that were not given are gone: {as_ranges(lost)}", "M-safe")
    require(not machine.memory.spoilt(before - pages_of(given) - {DATA_AT + 16 * PAGE_SIZE}), "pages changed", "M-safe")
    trial.machine().check_alive()
