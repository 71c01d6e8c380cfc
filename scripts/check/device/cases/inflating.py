"""Inflating and deflating: what goes with a page frame number, and when."""

import struct
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask
from protocol.virtio_balloon import PFN_SHIFT, BalloonFeature, BalloonQueue
from scripts.check.device.cases.reporting import LATE
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import stays_true
from scripts.check.machine.machine import WANTED, Machine
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges, page_pattern
from scripts.check.machine.raw_ring import IN_TIME, Raw, is_dealt_with, put_chain
from scripts.check.verdict import Found, require

PFNS_OF_LINUX: Final = 256
"""Page frame numbers of one buffer of Linux's driver."""


def judge_inflated(machine: Machine, before: set[int], given: set[int]) -> None:
    """Judge what a device did to the pages ``given``: a device may leave them, and harm no other."""
    kept = machine.memory.present() & given
    if kept == given:
        raise Found(f"the device acknowledged and took nothing: {as_ranges(kept)} are still there", "F-discard")
    machine.check_gone(before, given, "M-safe")


def send_raw_pfns(machine: Machine, kind: BalloonQueue, data: bytes) -> int:
    """Send bytes as an array of page frame numbers; return the used length."""
    queue = machine.queue(kind)
    queue.offer_data(data)
    return queue.collect()[0].length


@ring_case(
    "inflate-exact",
    clauses=("BI-13", "M-safe", "S-17", "P-16"),
    quick=True,
    peers=("firecracker/inflate", "crosvm/desc_parsing_inflate", "stratovirt/inflate_001", "villain/L0001"),
)
def inflate_exact(trial: Trial) -> None:
    """Of the pages in memory exactly those whose numbers were sent go, and the used length is 0."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 2 * MIB)
    before = machine.memory.present()
    given = [DATA_AT + PAGE_SIZE * n for n in range(512) if n % 3 == 0]
    used = machine.inflate(*given)
    judge_inflated(machine, before, set(given))
    require(
        used.length == 0,
        f"the used length is {used.length}, but the buffer of page frame numbers is not for the device to write",
        "S-17",
        "P-16",
    )


@ring_case(
    "inflate-as-linux",
    clauses=("BI-13", "M-safe"),
    peers=("firecracker/rss_memory_lower", "firecracker/size_reduction"),
    quick=True,
)
def inflate_as_linux(trial: Trial) -> None:
    """Buffers of 256 numbers in ascending order take 8 MiB, each its own MiB before it comes back."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 9 * MIB)
    before = machine.memory.present()
    given = [DATA_AT + PAGE_SIZE * n for n in range(8 * PFNS_OF_LINUX)]
    for start in range(0, len(given), PFNS_OF_LINUX):
        machine.inflate(*given[start : start + PFNS_OF_LINUX])
    judge_inflated(machine, before, set(given))


@ring_case("inflate-descending", clauses=("M-safe",))
def inflate_descending(trial: Trial) -> None:
    """The order of the numbers does not matter: descending, and shuffled by a fixed step."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 2 * MIB)
    before = machine.memory.present()
    down = [DATA_AT + PAGE_SIZE * n for n in reversed(range(128))]
    shuffled = [DATA_AT + MIB + PAGE_SIZE * (n * 37 % 128) for n in range(128)]
    machine.inflate(*down)
    machine.inflate(*shuffled)
    judge_inflated(machine, before, {*down, *shuffled})


@SUITE.case("inflate-duplicates", clauses=("M-safe", "F-inflate-twice"), peers=("villain/L0009", "villain/L0016"))
def inflate_duplicates(trial: Trial) -> None:
    """The same number twice in a buffer, and in two buffers, does no harm."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    machine.inflate(DATA_AT, DATA_AT, DATA_AT + PAGE_SIZE)
    machine.inflate(DATA_AT)
    judge_inflated(machine, before, {DATA_AT, DATA_AT + PAGE_SIZE})
    machine.check_survives()


@SUITE.case("inflate-high-bits", clauses=("M-safe",), edges=(134,), quick=True)
def inflate_high_bits(trial: Trial) -> None:
    """No bit of a page frame number is dropped: with a high bit set it is another page's."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    good = machine.address(DATA_AT) >> PFN_SHIFT
    numbers = [good ^ 1 << bit for bit in (24, 27, 30, 31)]
    send_raw_pfns(machine, BalloonQueue.INFLATE, struct.pack("<4I", *numbers))
    machine.check_gone(before, set(), "M-safe")


@SUITE.case("inflate-many", clauses=("BI-13", "M-safe"))
def inflate_many(trial: Trial) -> None:
    """A buffer of 1024 numbers takes them all, or is left as a whole."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 5 * MIB)
    before = machine.memory.present()
    given = [DATA_AT + PAGE_SIZE * n for n in range(1024)]
    machine.inflate(*given)
    judge_inflated(machine, before, set(given))


@SUITE.case(
    "inflate-beyond-memory",
    clauses=("M-safe",),
    edges=(134,),
    peers=("public/cloud-hypervisor-8177", "villain/L0004", "villain/L0008"),
    quick=True,
)
def inflate_beyond(trial: Trial) -> None:
    """Numbers beyond the memory are ignored, and the others of the same buffer keep their meaning."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    end = machine.address(machine.memory.size) >> PFN_SHIFT
    good = machine.address(DATA_AT) >> PFN_SHIFT
    numbers = [end, end + 1, 0xFFFF_FFFF, good, 0x8000_0000, end + 0x10000]
    send_raw_pfns(machine, BalloonQueue.INFLATE, struct.pack(f"<{len(numbers)}I", *numbers))
    judge_inflated(machine, before, {DATA_AT})
    machine.check_survives()


@SUITE.case("inflate-odd-length", clauses=("M-safe",), peers=("villain/L0005", "villain/L0013"), quick=True)
def inflate_odd_length(trial: Trial) -> None:
    """A buffer whose length is no multiple of 4 takes whole numbers or nothing, and comes back."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    number = struct.pack("<I", machine.address(DATA_AT) >> PFN_SHIFT)
    for data in (number[:1], number[:3], number + b"\x01", number + b"\x01\x02\x03"):
        send_raw_pfns(machine, BalloonQueue.INFLATE, data)
        lost = before - machine.memory.present() - {DATA_AT}
        require(not lost, f"{len(data)} bytes {data.hex()} took {as_ranges(lost)}", "M-safe")
    machine.check_survives()


@ring_case("inflate-over-two-buffers", clauses=("S-2", "P-12", "M-safe"), peers=("villain/L0015",), quick=True)
def inflate_framing(trial: Trial) -> None:
    """A number may begin in one buffer of a chain and end in the next: the device must not assume any framing."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    given = [DATA_AT + 2 * n * PAGE_SIZE for n in range(4)]
    data = struct.pack("<4I", *(machine.address(at) >> PFN_SHIFT for at in given))
    queue = machine.queue(BalloonQueue.INFLATE)
    machine.memory.write(queue.buffers, data[:6])
    machine.memory.write(queue.buffers + 256, data[6:])
    queue.offer([(machine.address(queue.buffers), 6), (machine.address(queue.buffers + 256), 10)], ())
    queue.collect()
    lost = before - machine.memory.present()
    clause = "P-12" if trial.packed else "S-2"
    require(not lost - set(given), f"pages that were not given are gone: {as_ranges(lost - set(given))}", clause)
    if lost != set(given):
        raise Found(
            f"four numbers in buffers of 6 and 10 bytes took {as_ranges(lost) or 'nothing'}: the device counts numbers "
            "by buffer, or takes the buffers in another order",
            clause,
        )


@SUITE.case(
    "inflate-large-array", clauses=("M-safe",), peers=("public/cloud-hypervisor-8177", "villain/L0010", "villain/L0031")
)
def inflate_large(trial: Trial) -> None:
    """A buffer of 16,384 numbers, most beyond the memory, comes back within the deadline."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    far = machine.address(machine.memory.size) >> PFN_SHIFT
    numbers = [machine.address(DATA_AT) >> PFN_SHIFT, *range(far, far + 16383)]
    send_raw_pfns(machine, BalloonQueue.INFLATE, struct.pack(f"<{len(numbers)}I", *numbers))
    judge_inflated(machine, before, {DATA_AT})


@ring_case("inflate-no-late-discard", clauses=("BI-13", "BI-9", "M-safe"), edges=(131,), quick=True)
def inflate_not_late(trial: Trial) -> None:
    """What is written after the deflate was acknowledged stays."""
    machine = trial.machine()
    given: set[int] = set()
    for turn in range(12):
        begin = DATA_AT + turn * MIB
        pages = [begin + PAGE_SIZE * n for n in range(PFNS_OF_LINUX)]
        machine.memory.touch(begin, MIB)
        machine.inflate(*pages)
        machine.deflate(*pages)
        machine.memory.touch(begin, MIB)
        given |= set(pages)
    machine.barrier()
    stays_true(lambda: not machine.memory.spoilt(given), LATE)
    lost = machine.memory.spoilt(given)
    require(not lost, f"pages changed after their deflate was acknowledged: {as_ranges(lost)}", "M-safe")


@ring_case(
    "deflate-harmless", clauses=("M-safe", "S-17", "P-16"), peers=("firecracker/deflate", "villain/L0017"), quick=True
)
def deflate_harmless(trial: Trial) -> None:
    """A deflate of pages that are in use changes none of them and brings none into being."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    used = machine.deflate(*(DATA_AT + PAGE_SIZE * n for n in range(16)))
    lost = before - machine.memory.present()
    require(not lost, f"a deflate discarded {as_ranges(lost)}", "M-safe")
    require(not machine.memory.spoilt(before), "a deflate changed pages", "M-safe")
    require(used.length == 0, f"the used length of a deflate is {used.length} instead of 0", "S-17", "P-16")


@ring_case("deflate-content", clauses=("BI-14", "M-safe"), peers=("villain/L0002", "villain/L0006"), quick=True)
def deflate_content(trial: Trial) -> None:
    """A page that was inflated and deflated reads as zeros or as before, and can be written."""
    machine = trial.machine(wanted=WANTED | feature_mask(BalloonFeature.MUST_TELL_HOST))
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    machine.inflate(DATA_AT)
    machine.deflate(DATA_AT)
    seen = machine.memory.read(DATA_AT, PAGE_SIZE)
    if seen not in (bytes(PAGE_SIZE), page_pattern(DATA_AT)):
        raise Found(f"a deflated page holds {seen[:16].hex()}..., neither zeros nor what it held", "BI-14")
    machine.memory.touch(DATA_AT, PAGE_SIZE)
    machine.barrier()
    require(not machine.memory.spoilt({DATA_AT}), "a deflated page changed after it was used again", "M-safe")


@SUITE.case("inflate-buffer-untouched", clauses=("S-4", "P-3", "M-safe"), quick=True)
def inflate_buffer_untouched(trial: Trial) -> None:
    """The device does not write the buffer that it reads the numbers from."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    queue = machine.queue(BalloonQueue.INFLATE)
    data = struct.pack("<16I", *(machine.address(DATA_AT + n * PAGE_SIZE) >> PFN_SHIFT for n in range(16)))
    send_raw_pfns(machine, BalloonQueue.INFLATE, data)
    seen = machine.memory.read(queue.buffers, len(data))
    require(seen == data, f"the buffer held {data.hex()} and holds {seen.hex()}", "S-4", "P-3")


@SUITE.case("inflate-own-buffer", clauses=("M-safe",), edges=(112,))
def inflate_own_buffer(trial: Trial) -> None:
    """The number of the page in which the numbers are does no harm to the device."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.INFLATE)
    send_raw_pfns(machine, BalloonQueue.INFLATE, struct.pack("<I", machine.address(queue.buffers) >> PFN_SHIFT))
    machine.check_survives()


@SUITE.case("inflate-own-ring", clauses=("M-safe", "F-ring"), edges=(112,), peers=("villain/L0021",))
def inflate_own_ring(trial: Trial) -> None:
    """The number of a page of the ring itself does not take the ring from the device."""
    machine = trial.machine()
    queue = machine.queue(BalloonQueue.INFLATE)
    pages = range(queue.place, queue.place + queue.layout.bytes, PAGE_SIZE)
    data = struct.pack(f"<{len(pages)}I", *(machine.address(at) >> PFN_SHIFT for at in pages))
    machine.memory.write(queue.buffers, data)
    queue.offer([(machine.address(queue.buffers), len(data))], ())
    machine.barrier()
    queue.gives_nothing_back(0.05)
    gone = {at for at in pages if at not in machine.memory.present(queue.place, queue.place + queue.layout.bytes)}
    if gone:
        raise Found(f"the device discards pages of its own ring ({as_ranges(gone)}), which then is empty", "F-ring")
    machine.check_survives()


@SUITE.case("inflate-writable-buffer", clauses=("S-4", "M-safe"), peers=("villain/L0012",))
def inflate_writable(trial: Trial) -> None:
    """A buffer of numbers that is marked as device-writable, a driver's mistake, does no harm."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    queue = machine.queue(BalloonQueue.INFLATE)
    machine.memory.write(queue.buffers, struct.pack("<I", machine.address(DATA_AT) >> PFN_SHIFT))
    queue.offer((), [(machine.address(queue.buffers), 4)])
    machine.barrier()
    queue.gives_nothing_back(0.05)
    lost = before - machine.memory.present() - {DATA_AT}
    require(not lost, f"pages that were not given are gone: {as_ranges(lost)}", "M-safe")


@ring_case("inflate-empty", clauses=("M-safe", "F-empty"), peers=("villain/L0003",), quick=True)
def inflate_empty(trial: Trial) -> None:
    """A buffer of no bytes, and one of no whole number, take nothing, and come back."""
    for length in (0, 3):
        machine = trial.machine()
        machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
        before = machine.memory.present()
        queue = machine.queue(BalloonQueue.INFLATE)
        put_chain(queue, [Raw(machine.address(queue.buffers), length)])
        back = is_dealt_with(machine, queue, IN_TIME)
        machine.check_gone(before, set(), "M-safe")
        if not back:
            how = "it asks for a reset" if machine.wants_reset() else "it does not say why"
            raise Found(f"an inflate of {length} bytes does not come back, and {how}", "F-empty")


@SUITE.case("inflate-number-zero", clauses=("M-safe",), edges=(134,), peers=("villain/L0007",), quick=True)
def inflate_zero(trial: Trial) -> None:
    """The number 0 means the page at guest address 0, if there is memory, and takes no other."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    good = machine.address(DATA_AT) >> PFN_SHIFT
    send_raw_pfns(machine, BalloonQueue.INFLATE, struct.pack("<3I", 0, good, 0))
    judge_inflated(machine, before, {DATA_AT})
    machine.check_survives()


@ring_case("inflate-buffer-outside", clauses=("M-safe",), edges=(109,), peers=("villain/L0011",), quick=True)
def inflate_outside(trial: Trial) -> None:
    """A buffer of numbers that lies outside of the memory, or leaves it, takes nothing."""
    for where in ("outside", "over the end", "at an address that wraps"):
        machine = trial.machine()
        machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
        before = machine.memory.present()
        end = machine.address(machine.memory.size)
        address = {"outside": end + PAGE_SIZE, "over the end": end - 4}.get(where, (1 << 64) - 4)
        put_chain(machine.queue(BalloonQueue.INFLATE), [Raw(address, 4096)])
        is_dealt_with(machine, machine.queue(BalloonQueue.INFLATE), seconds=0.1)
        machine.barrier()
        lost = before - machine.memory.present()
        require(not lost, f"an inflate whose numbers lie {where} took {as_ranges(lost)}", "M-safe")
        machine.memory.discard(machine.memory.size - PAGE_SIZE, PAGE_SIZE)  # the device may have read the last page
        machine.check_survives()


@ring_case("inflate-full-ring", clauses=("S-22", "P-2", "M-safe"), edges=(96,), peers=("villain/L0014",), quick=True)
def inflate_full_ring(trial: Trial) -> None:
    """A ring full of inflates comes back whole, each buffer once, and each takes its own page."""
    machine = trial.machine(size=64)
    queue = machine.queue(BalloonQueue.INFLATE)
    machine.memory.touch(DATA_AT, 256 * PAGE_SIZE)
    before = machine.memory.present()
    given = [DATA_AT + 2 * n * PAGE_SIZE for n in range(queue.layout.size)]
    for number, page in enumerate(given):
        pfn = struct.pack("<I", machine.address(page) >> PFN_SHIFT)
        machine.memory.write(queue.buffers + 64 * number, pfn)
    heads = [queue.driver.add([(machine.address(queue.buffers + 64 * n), 4)], ()) for n in range(len(given))]
    queue.kick()
    came = [used.head for used in queue.collect(len(heads))]
    require(sorted(came) == sorted(heads), f"buffers {sorted(heads)} were given, {sorted(came)} came back", "S-22")
    judge_inflated(machine, before, set(given))


@ring_case("inflate-again", clauses=("BI-13", "BI-14"), peers=("firecracker/reinflate_balloon",), quick=True)
def inflate_again(trial: Trial) -> None:
    """A page that was inflated, deflated and used goes again when it is inflated again."""
    machine = trial.machine()
    given = [DATA_AT + PAGE_SIZE * n for n in range(64)]
    for _ in range(5):
        machine.memory.touch(DATA_AT, 128 * PAGE_SIZE)
        before = machine.memory.present()
        machine.inflate(*given)
        judge_inflated(machine, before, set(given))
        machine.deflate(*given)
        machine.check_gone(before - set(given), set(), "M-safe")


@ring_case("inflate-then-report", clauses=("M-safe", "BR-7"), edges=(154,), peers=("villain/L0026",), quick=True)
def inflate_then_report(trial: Trial) -> None:
    """A report of pages that are in the balloon comes back and brings none into being."""
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    given = [DATA_AT + PAGE_SIZE * n for n in range(4, 8)]
    machine.inflate(*given)
    machine.report((given[0], 4 * PAGE_SIZE))
    judge_inflated(machine, before, set(given))
    machine.check_survives()
