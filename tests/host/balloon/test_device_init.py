"""DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE: which pages the device calls initialised."""

import struct

import pytest

from host.balloon.device_init import initialised_bitmap, initialised_bytes
from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.memory.discard_plan import DeviceMemory, DiscardPlan, Refusal
from host.virtqueue.virtqueue import Buffer, Chain
from protocol.memory import GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio import LOG_ALL
from protocol.virtio_balloon import BalloonQueue

PAGE = 4096
REPORTED, ON_INFLATE, REPORTING = 1 << 6, 1 << 7, 1 << 5
MEMORY = DeviceMemory(
    RegionTable(
        [MemoryRegion(guest_address=GuestAddress(0), size=64 * PAGE, user_address=UserAddress(0), mmap_offset=0)]
    )
)


def page(number: int, count: int = 1) -> Buffer:
    return number * PAGE, count * PAGE


def test_report_is_initialised_up_to_the_first_range_that_was_kept() -> None:
    plan = DiscardPlan()
    buffers = [page(1), (0, 0), page(4, 2), page(9), page(11)]
    assert initialised_bytes(buffers, plan) == 5 * PAGE
    plan.refuse(Refusal.EMPTY, 0, 0)
    plan.refuse(Refusal.DISCARD_FAILED, *page(9))
    assert initialised_bytes(buffers, plan) == 3 * PAGE
    plan.refuse(Refusal.UNALIGNED, *page(1))
    assert initialised_bytes(buffers, plan) == 0


def test_bitmap_has_a_bit_for_each_page_in_the_order_of_the_message() -> None:
    plan = DiscardPlan()
    pfns = [5, 6, 7, 5, 20, 21, 22, 23, 24]
    assert initialised_bitmap(pfns, plan) == b"\xff\x01"
    plan.refuse(Refusal.OUT_OF_RANGE, *page(6))
    plan.refuse(Refusal.RING_MEMORY, *page(20, 2))
    plan.refuse(Refusal.DISCARD_FAILED, *page(19, 5))
    plan.refuse(Refusal.TOO_LONG, *page(24))  # where the array of numbers is too long, not page 24
    assert initialised_bitmap(pfns, plan) == bytes([0b00001101, 1])
    assert initialised_bitmap([], plan) == b""


def serve(features: int, queue: BalloonQueue, chain: Chain, *pfns: int) -> tuple[int, dict[int, bytes]]:
    """Return the used length of a chain whose pages all were discarded, and what was written where."""
    balloon = VirtioBalloon(features=features)
    written: dict[int, bytes] = {}
    data = struct.pack(f"<{len(pfns)}I", *pfns)
    outcome: Outcome = balloon.serve(queue, chain, MEMORY, lambda address, length: data[:length])
    return balloon.used_length(queue, chain, outcome, written.__setitem__), written


@pytest.mark.parametrize(
    ("features", "length"), [(REPORTING | REPORTED, 3 * PAGE), (REPORTING, 0), (REPORTING | REPORTED | LOG_ALL, 0)]
)
def test_used_length_of_a_report(features: int, length: int) -> None:
    chain = Chain(0, [], [page(1), page(8, 2)], None)
    assert serve(features, BalloonQueue.REPORTING, chain) == (length, {})


def test_page_of_the_wrong_direction_is_not_initialised() -> None:
    chain = Chain(0, [page(1)], [page(8)], None)
    assert serve(REPORTING | REPORTED, BalloonQueue.REPORTING, chain)[0] == PAGE


def test_bitmap_of_an_inflated_message_is_written_to_where_the_driver_wants_it() -> None:
    chain = Chain(0, [(0x100, 40)], [(0x300, 1), (0x400, 5)], None)
    pfns = [1, 2, 3, 99, 5, 6, 7, 8, 9, 10]  # 99 lies outside of memory
    assert serve(ON_INFLATE, BalloonQueue.INFLATE, chain, *pfns) == (2, {0x300: b"\xf7", 0x400: b"\x03"})


@pytest.mark.parametrize("features", [0, REPORTED, ON_INFLATE | LOG_ALL])
def test_without_the_feature_and_while_writes_are_logged_no_bitmap_is_written(features: int) -> None:
    chain = Chain(0, [(0x100, 8)], [(0x300, 1)], None)
    assert serve(features, BalloonQueue.INFLATE, chain, 1, 2) == (0, {})


def test_bitmap_is_cut_where_the_driver_gives_too_little_room() -> None:
    pfns = list(range(1, 20))
    short = Chain(0, [(0x100, 4 * len(pfns))], [(0x300, 2)], None)
    assert serve(ON_INFLATE, BalloonQueue.INFLATE, short, *pfns) == (2, {0x300: b"\xff\xff"})
    none = Chain(0, [(0x100, 4 * len(pfns))], [], None)
    assert serve(ON_INFLATE, BalloonQueue.INFLATE, none, *pfns) == (0, {})


def test_deflated_pages_have_no_bitmap() -> None:
    chain = Chain(0, [(0x100, 8)], [(0x300, 1)], None)
    assert serve(ON_INFLATE, BalloonQueue.DEFLATE, chain, 1, 2) == (0, {})
