"""DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE: what a device says to be initialised holds zeros.

Both are proposed (oasis-tcs/virtio-spec #244 and #242), so numbers and meaning may change, and a FAIL is one against
the draft. What is judged is what a driver relies on that then does not clear a page: no page is said to hold zeros that
does not, and without the bits nothing is said. A device that says too little is a finding.
"""

import struct
from collections.abc import Iterable
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask
from protocol.virtio_balloon import PFN_SHIFT, BalloonFeature, BalloonQueue
from scripts.check.device.cases.reporting import pages_of
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.machine import WANTED, Machine, Range
from scripts.check.machine.memory_file import DATA_AT, as_ranges
from scripts.check.verdict import Found, require, skip

REPORTED: Final = BalloonFeature.DEVICE_INIT_REPORTED
ON_INFLATE: Final = BalloonFeature.DEVICE_INIT_ON_INFLATE

BITMAP_AT: Final = 0x1000
"""Offset of the bitmap from the page numbers, in the queue's place for buffers."""

UNTOUCHED: Final = 0xA5


def drafted(trial: Trial, *bits: BalloonFeature) -> Machine:
    """Return a machine with draft features, which the case is NOT EXERCISED without."""
    need_offer(trial, *bits)
    machine = trial.machine(wanted=WANTED | feature_mask(*bits))
    machine.memory.touch(DATA_AT, 64 * PAGE_SIZE)
    return machine


def need_offer(trial: Trial, *bits: BalloonFeature) -> None:
    """Raise NotExercised unless the device offers all of ``bits``."""
    for bit in bits:
        if not trial.device.offered & feature_mask(bit):
            skip(f"the device does not offer {bit.name}, a draft's bit {bit.value}")


def not_zero(machine: Machine, pages: Iterable[int]) -> set[int]:
    """Return those of ``pages`` that hold something else than zeros."""
    return {at for at in pages if any(machine.memory.read(at, PAGE_SIZE))}


# -- reports --------------------------------------------------------------------------------------------


@ring_case("draft-report", clauses=("F-draft",), peers=("qemu-device-init/report",), quick=True)
def report(trial: Trial) -> None:
    """The used length of a report says how many of its bytes, from the first on, are zeros, and they are."""
    machine = drafted(trial, REPORTED)
    given: list[Range] = [(DATA_AT + 8 * n * PAGE_SIZE, 4 * PAGE_SIZE) for n in range(3)]
    whole = sum(length for _, length in given)
    used = machine.report(*given)
    require(used.length <= whole, f"a report of {whole} bytes has the used length {used.length}", "S-17", "P-16")
    told = sorted(pages_of(*given))[: used.length // PAGE_SIZE]
    wrong = not_zero(machine, told)
    if wrong:
        raise Found(
            f"the used length {used.length} says that {as_ranges(told)} hold zeros, and {as_ranges(wrong)} hold "
            f"{machine.memory.read(min(wrong, default=0), 8).hex()}...",
            "F-draft",
        )
    _others_stay(machine, pages_of(*given))
    if used.length < whole and not not_zero(machine, pages_of(*given)):
        raise Found(
            f"all {whole} bytes of a report hold zeros, and its used length tells of {used.length}: a driver clears "
            "the others again",
            "F-draft",
        )


@ring_case("draft-report-beyond", clauses=("F-draft",), quick=True)
def report_beyond(trial: Trial) -> None:
    """A used length does not reach over a range that is no memory."""
    machine = drafted(trial, REPORTED)
    end = machine.address(machine.memory.size)
    first, last = machine.buffers([(DATA_AT, PAGE_SIZE), (DATA_AT + 8 * PAGE_SIZE, PAGE_SIZE)])
    machine.reporting.offer((), [first, (end, PAGE_SIZE), last])
    came: list[int] = []

    def is_back() -> bool:
        used = machine.reporting.take_used()
        came.extend([used.length] if used is not None else [])
        return bool(came)

    if not becomes_true(is_back, 0.3):
        raise Found("a report with a range that is no memory does not come back", "F-range")
    if came[0] > PAGE_SIZE:
        raise Found(
            f"the used length {came[0]} of a report says that a page beyond the memory is initialised",
            "F-draft",
        )


def _others_stay(machine: Machine, given: set[int]) -> None:
    others = {DATA_AT + n * PAGE_SIZE for n in range(64)} - given
    lost = others - machine.memory.present()
    require(not lost, f"pages that were not given are gone: {as_ranges(lost)}", "M-safe")
    require(not machine.memory.spoilt(others), "pages that were not given changed", "M-safe")


# -- inflating ------------------------------------------------------------------------------------------


def inflate_with_bitmap(machine: Machine, pfns: list[int], room: int) -> tuple[int, bytes]:
    """Send page frame numbers with room for a bitmap after them; return the used length and the room's bytes."""
    queue = machine.queue(BalloonQueue.INFLATE)
    place = queue.buffers + BITMAP_AT
    machine.memory.write(place, bytes([UNTOUCHED]) * (room + 8))
    queue.offer_data(struct.pack(f"<{len(pfns)}I", *pfns), [(machine.address(place), room)])
    used = queue.collect()[0]
    after = machine.memory.read(place, room + 8)
    require(
        after[room:] == bytes([UNTOUCHED]) * 8,
        f"the bitmap's buffer has {room} bytes, and the device wrote beyond: {after[room:].hex()}",
        "M-safe",
    )
    return used.length, after[:room]


def _judge_bitmap(machine: Machine, pages: list[int], length: int, bitmap: bytes) -> None:
    # `pages` are the offsets in the order of their numbers, -1 for a number that is no memory's.
    require(
        length <= len(bitmap),
        f"the used length {length} is more than the bitmap's {len(bitmap)} bytes",
        "S-17",
        "P-16",
    )
    told = [n for n in range(8 * length) if bitmap[n // 8] >> n % 8 & 1]
    for number in told:
        if number >= len(pages):
            raise Found(f"the bitmap {bitmap.hex()} has bit {number} for one of {len(pages)} pages", "F-draft")
        if pages[number] < 0:
            raise Found(f"the bitmap {bitmap.hex()} has bit {number}, whose page is beyond the memory", "F-draft")
        seen = machine.memory.read(pages[number], PAGE_SIZE)
        if any(seen):
            raise Found(f"the bitmap {bitmap.hex()} has bit {number}, whose page holds {seen[:8].hex()}...", "F-draft")
    silent = [n for n, at in enumerate(pages) if at >= 0 and n not in told and not not_zero(machine, [at])]
    if silent:
        raise Found(f"page {silent[0]} holds zeros, and the bitmap {bitmap.hex()} does not tell", "F-draft")


@ring_case(
    "draft-inflate",
    clauses=("F-draft",),
    peers=("qemu-device-init/inflate", "qemu-device-init/inflate_four"),
    quick=True,
)
def inflate(trial: Trial) -> None:
    """A bitmap after the page numbers tells of each page whether it holds zeros: for one page, four, and nineteen."""
    for count in (1, 4, 19):
        machine = drafted(trial, ON_INFLATE)
        pages = [DATA_AT + 2 * n * PAGE_SIZE for n in range(count)]
        numbers = [machine.address(at) >> PFN_SHIFT for at in pages]
        length, bitmap = inflate_with_bitmap(machine, numbers, -(-count // 8))
        _judge_bitmap(machine, pages, length, bitmap)
        _others_stay(machine, set(pages))


@SUITE.case("draft-inflate-beyond", clauses=("F-draft",), quick=True)
def inflate_beyond(trial: Trial) -> None:
    """A page that is no memory is not told to hold zeros; its neighbours in the bitmap keep their places."""
    machine = drafted(trial, ON_INFLATE)
    pages = [DATA_AT, -1, DATA_AT + 4 * PAGE_SIZE, -1]
    far = machine.address(machine.memory.size) >> PFN_SHIFT
    numbers = [far if at < 0 else machine.address(at) >> PFN_SHIFT for at in pages]
    length, bitmap = inflate_with_bitmap(machine, numbers, 1)
    _judge_bitmap(machine, pages, length, bitmap)


@SUITE.case("draft-inflate-short-bitmap", clauses=("F-draft", "M-safe"), quick=False)
def inflate_short(trial: Trial) -> None:
    """A bitmap with less room than there are pages, or more, is written within its buffer."""
    for room in (1, 2, 64):
        machine = drafted(trial, ON_INFLATE)
        pages = [DATA_AT + n * PAGE_SIZE for n in range(20)]
        length, _ = inflate_with_bitmap(machine, [machine.address(at) >> PFN_SHIFT for at in pages], room)
        require(length <= room, f"the used length {length} is more than the bitmap's {room} bytes", "S-17", "P-16")
        machine.check_survives()


# -- without them ---------------------------------------------------------------------------------------


@ring_case(
    "draft-not-negotiated",
    clauses=("G-8", "S-17", "P-16"),
    peers=("qemu-device-init/inflate_baseline", "qemu-device-init/report_baseline"),
    quick=True,
)
def not_negotiated(trial: Trial) -> None:
    """A driver that leaves the bits out finds used lengths of 0, and a writable buffer after page numbers unwritten."""
    if not trial.device.offered & feature_mask(REPORTED, ON_INFLATE):
        skip("the device offers neither of the draft's bits")
    machine = trial.machine()
    machine.memory.touch(DATA_AT, 64 * PAGE_SIZE)
    length = machine.report((DATA_AT, 4 * PAGE_SIZE)).length
    require(length == 0, f"without DEVICE_INIT_REPORTED the used length of a report is {length}", "S-17", "P-16")
    length = machine.inflate(DATA_AT + 8 * PAGE_SIZE).length
    require(length == 0, f"without DEVICE_INIT_ON_INFLATE the used length of an inflate is {length}", "S-17", "P-16")
    number = machine.address(DATA_AT + 10 * PAGE_SIZE) >> PFN_SHIFT
    length, room = inflate_with_bitmap(machine, [number], 8)
    require(
        length == 0 and room == bytes([UNTOUCHED]) * 8,
        f"without DEVICE_INIT_ON_INFLATE the device wrote {room.hex()}, used length {length}",
        "S-17",
        "P-16",
    )


@SUITE.case("draft-negotiation", clauses=("G-7", "G-8"), peers=("qemu-device-init/negotiation",), quick=False)
def negotiation(trial: Trial) -> None:
    """Each of the draft's bits that is offered can be accepted alone or left out; one needs PAGE_REPORTING offered."""
    offered = [bit for bit in (REPORTED, ON_INFLATE) if trial.device.offered & feature_mask(bit)]
    if not offered:
        skip("the device offers neither of the draft's bits, as it should until it is told to")
    require(
        REPORTED not in offered or bool(trial.device.offered & feature_mask(BalloonFeature.PAGE_REPORTING)),
        "DEVICE_INIT_REPORTED is offered without PAGE_REPORTING, which it is about",
        "G-7",
    )
    for bits in ([], *([bit] for bit in offered), offered):
        machine = trial.machine(wanted=WANTED | feature_mask(*bits))
        machine.check_alive()
