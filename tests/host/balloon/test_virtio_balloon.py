"""The balloon device: what a chain on each queue asks for, and what its configuration space gives and takes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.balloon.balloon_statistics import STATISTICS_BYTES_MAX, BalloonStatistics
from host.balloon.virtio_balloon import PFN_BYTES_MAX, Outcome, VirtioBalloon
from host.memory.discard_plan import DeviceMemory, DiscardPlan, Refusal
from host.virtqueue.virtqueue import Buffer, Chain
from protocol.balloon_config import BalloonConfig
from protocol.errors import VirtqueueError
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio_balloon import BalloonQueue

P = 4096
ARRAY = 0x10_0000
"""Guest address where tests put page frame numbers; no memory of the test's lies there."""


def memory_of(*spans: tuple[int, int], rings: tuple[FileRange, ...] = ()) -> DeviceMemory:
    """Return memory with one region for each first page and number of pages."""
    return DeviceMemory(
        RegionTable(
            MemoryRegion(
                guest_address=GuestAddress(first * P),
                size=pages * P,
                user_address=UserAddress(number << 40),
                mmap_offset=0,
            )
            for number, (first, pages) in enumerate(spans)
        ),
        protected=rings,
    )


def inflate(
    data: bytes, memory: DeviceMemory, *, pieces: tuple[int, ...] = (), balloon: VirtioBalloon | None = None
) -> DiscardPlan:
    """Return the plan for an inflate chain whose buffers are ``data``, cut into ``pieces`` of so many bytes."""
    buffers: list[Buffer] = []
    at = 0
    for length in (*pieces, len(data) - sum(pieces)):
        buffers.append((ARRAY + at, length))
        at += length

    def read_guest(address: int, length: int) -> bytes:
        start = address - ARRAY
        assert 0 <= start <= start + length <= len(data)
        return data[start : start + length]

    chain = Chain(0, buffers, [], None)
    return (balloon or VirtioBalloon()).serve(BalloonQueue.INFLATE, chain, memory, read_guest).plan


def pfns(*numbers: int) -> bytes:
    """Return page frame numbers as a driver writes them."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


EMPTY = memory_of((0, 4))


def no_read(_address: int, _length: int) -> bytes:
    raise AssertionError("nothing is to be read")


# -- inflate and the queues that discard nothing ----------------------------------------------------------------------


def test_neighbouring_pages_in_any_order_are_one_range() -> None:
    plan = inflate(pfns(9, 3, 2, 4, 3), memory_of((0, 16)))
    assert plan.discards == [FileRange(0, 2 * P, 3 * P), FileRange(0, 9 * P, P)]
    assert (plan.ranges, plan.bytes, plan.refused) == (2, 4 * P, [])


@given(numbers=st.lists(st.integers(0, 40), max_size=40), cuts=st.lists(st.integers(0, 12), max_size=5))
def test_page_numbers_may_be_cut_into_buffers_anywhere(numbers: list[int], cuts: list[int]) -> None:
    data = pfns(*numbers)
    pieces = tuple(cuts) if sum(cuts) <= len(data) else ()
    plan = inflate(data, memory_of((0, 64)), pieces=pieces)
    pages = {page for _, offset, length in plan.discards for page in range(offset // P, (offset + length) // P)}
    assert pages == set(numbers)
    assert plan.bytes == len(set(numbers)) * P


def test_page_number_that_is_cut_off_is_ignored() -> None:
    assert inflate(pfns(1) + b"\2\0\0", memory_of((0, 16))).discards == [FileRange(0, P, P)]
    assert inflate(b"", memory_of((0, 16))).ranges == 0


@given(
    numbers=st.sets(st.integers(0, 40), min_size=1),
    spans=st.sampled_from([((0, 10), (10, 10)), ((2, 5), (20, 4)), ((39, 1),)]),
    ring=st.integers(0, 9),
)
def test_bad_page_takes_no_good_one_along(numbers: set[int], spans: tuple[tuple[int, int], ...], ring: int) -> None:
    rings = (FileRange(0, ring * P + 5, 20),) if ring < spans[0][1] else ()
    plan = inflate(pfns(*numbers), memory_of(*spans, rings=rings))
    good = {
        (region, page - first)
        for page in numbers
        for region, (first, pages) in enumerate(spans)
        if first <= page < first + pages and not (rings and region == 0 and page - first == ring)
    }
    discarded = {
        (region, page)
        for region, offset, length in plan.discards
        for page in range(offset // P, (offset + length) // P)
    }
    assert discarded == good
    assert plan.bytes == len(numbers) * P
    assert sum(refused.length for refused in plan.refused) == (len(numbers) - len(good)) * P


def test_page_number_of_32_bits_is_an_address_above_4_gib() -> None:
    plan = inflate(pfns(0xFFFF_FFFF), memory_of((0xFFFF_FFFF, 1)))
    assert plan.discards == [FileRange(0, 0, P)]


def test_page_numbers_past_the_limit_are_not_read() -> None:
    data = pfns(*range(PFN_BYTES_MAX // 4)) + pfns(60_000, 60_001)
    plan = inflate(data, memory_of((0, 70_000)))
    assert plan.discards == [FileRange(0, 0, PFN_BYTES_MAX // 4 * P)]
    assert [(each.reason, each.address, each.length) for each in plan.refused] == [
        (Refusal.TOO_LONG, ARRAY + PFN_BYTES_MAX, 8)
    ]


def test_buffer_of_4_gib_of_page_numbers_is_read_up_to_the_limit() -> None:
    reads: list[tuple[int, int]] = []

    def read_guest(address: int, length: int) -> bytes:
        reads.append((address, length))
        return bytes(length)

    chain = Chain(0, [(ARRAY, 2**32 - 1), (ARRAY, 2**32 - 1)], [], None)
    plan = VirtioBalloon().serve(BalloonQueue.INFLATE, chain, memory_of((0, 4)), read_guest).plan
    assert reads == [(ARRAY, PFN_BYTES_MAX)]
    assert [each.reason for each in plan.refused] == [Refusal.TOO_LONG] * 2
    assert plan.discards == [FileRange(0, 0, P)]


def test_page_numbers_outside_the_memory_break_the_queue() -> None:
    def read_guest(address: int, _length: int) -> bytes:
        raise VirtqueueError(f"nothing at {address:#x}")

    with pytest.raises(VirtqueueError, match="nothing at"):
        VirtioBalloon().serve(BalloonQueue.INFLATE, Chain(0, [(0, 4)], [], None), memory_of((0, 4)), read_guest)


def test_writable_buffers_of_an_inflate_chain_are_not_pages() -> None:
    chain = Chain(0, [], [(0, P)], None)
    plan = VirtioBalloon().serve(BalloonQueue.INFLATE, chain, memory_of((0, 4)), no_read).plan
    assert (plan.discards, plan.refused) == ([], [])


def test_deflated_pages_are_counted_unread() -> None:
    outcome = VirtioBalloon().serve(BalloonQueue.DEFLATE, Chain(0, [(0, 9), (P, 7)], [(0, P)], None), EMPTY, no_read)
    assert (outcome.pages, outcome.hold) == (4, False)
    assert (outcome.plan.ranges, outcome.plan.bytes, outcome.plan.discards, outcome.plan.refused) == (2, 4 * P, [], [])


def test_deflated_pages_are_counted_up_to_the_limit() -> None:
    chain = Chain(0, [(0, 2**32 - 1)] * 3, [], None)
    assert VirtioBalloon().serve(BalloonQueue.DEFLATE, chain, EMPTY, no_read).pages == PFN_BYTES_MAX // 4


# -- configuration space ----------------------------------------------------------------------------------------------


@given(offset=st.integers(0, 256), length=st.integers(0, 256))
def test_configuration_space_is_answered_in_full_for_any_window(offset: int, length: int) -> None:
    config = BalloonConfig(num_pages=0x01010101, actual=0x02020202, free_page_hint_cmd_id=3, poison_val=0x04040404)
    whole = config.build() + bytes(512)
    assert VirtioBalloon(config=config).read_config(offset, length) == whole[offset : offset + length]


def test_reset_forgets_the_driver_and_keeps_the_target() -> None:
    balloon = VirtioBalloon(config=BalloonConfig(num_pages=7, actual=6, poison_val=5), features=1)
    balloon.settled_for = balloon.drivers
    balloon.reset()
    assert balloon == VirtioBalloon(config=BalloonConfig(num_pages=7))
    assert balloon.settled_for != balloon.drivers


def test_first_chain_settles_the_poison_value_beside_the_event_loop() -> None:
    """The worker settles it for the driver that it has seen, so a driver that leaves meanwhile is not settled for the
    next one, and a ring that stops beside another's first chain does not undo it."""
    balloon = VirtioBalloon()
    seen = balloon.drivers  # the worker has read it, and is about to write
    balloon.driver_left()
    balloon.settled_for = seen
    balloon.write_config(12, bytes([1, 0, 0, 0]), poison_offered=True)
    assert balloon.config.poison_val == 1
    balloon.settled_for = balloon.drivers
    balloon.write_config(12, bytes([2, 0, 0, 0]), poison_offered=True)
    assert balloon.config.poison_val == 1


REPORT = Chain(0, [], [(0, P)], None)
POISON = 1 << 4


def keeps(balloon: VirtioBalloon) -> bool:
    """Report one page; return whether it is kept."""
    return not balloon.serve(BalloonQueue.REPORTING, REPORT, memory_of((0, 4)), no_read).plan.discards


def test_poison_value_that_comes_before_the_features_counts() -> None:
    # QEMU passes a driver's writes on at once, the features only when the driver is ready.
    balloon = VirtioBalloon()
    balloon.write_config(0, BalloonConfig(num_pages=9, poison_val=0xAA).build(), poison_offered=True)
    balloon.features = POISON
    assert balloon.config.num_pages == 0
    assert keeps(balloon)


def test_poison_value_without_the_feature_keeps_nothing() -> None:
    balloon = VirtioBalloon()
    balloon.write_config(12, b"\xaa" * 4, poison_offered=True)
    assert not keeps(balloon)


def test_poison_value_cannot_be_written_where_it_is_not_offered() -> None:
    balloon = VirtioBalloon()
    balloon.write_config(0, b"\xaa" * 16, poison_offered=False)
    assert balloon.config == BalloonConfig(actual=0xAAAA_AAAA)


@pytest.mark.parametrize(("first", "second"), [(0, 0xAA), (0xAA, 0)])
def test_poison_value_does_not_change_any_more_once_pages_were_given(first: int, second: int) -> None:
    balloon = VirtioBalloon(features=POISON)
    balloon.write_config(12, struct.pack("<I", first), poison_offered=True)
    assert keeps(balloon) is (first != 0)
    balloon.write_config(12, struct.pack("<I", second), poison_offered=True)
    assert keeps(balloon) is (first != 0)


def test_poison_value_that_was_never_told_is_not_taken_for_zero() -> None:
    """A device that took over from one that was killed: the driver wrote the value to the other one."""
    balloon = VirtioBalloon(features=POISON)
    window = BalloonConfig(actual=5).build()
    kept = [balloon.keeps_pages]
    for offset, data in ((4, b"\5\0\0\0"), (12, b"\0\0"), (0, window[:15]), (14, b"\0\0")):
        balloon.write_config(offset, data, poison_offered=True)
        kept.append(balloon.keeps_pages)
    balloon.write_config(0, window, poison_offered=True, driver_runs=True)  # QEMU, for a new size
    kept.append(balloon.keeps_pages)
    assert kept == [Refusal.POISON] * 6


@pytest.mark.parametrize(("offset", "driver_runs"), [(0, False), (12, False), (12, True)])
def test_poison_value_of_zero_that_was_told_counts_until_the_next_reset(offset: int, driver_runs: bool) -> None:
    """QEMU writes the whole window before the queues run, User Mode Linux the field alone when they do."""
    balloon = VirtioBalloon(features=POISON)
    balloon.write_config(offset, bytes(16 - offset), poison_offered=True, driver_runs=driver_runs)
    kept = [balloon.keeps_pages]
    balloon.reset()
    balloon.features = POISON
    assert [*kept, balloon.keeps_pages] == [None, Refusal.POISON]


@pytest.mark.parametrize("value", [0, 0xAAAAAAAA])
def test_first_statistics_come_before_the_poison_value_and_do_not_settle_it(value: int) -> None:
    balloon = VirtioBalloon(features=POISON)
    balloon.serve(BalloonQueue.STATS, Chain(0, [(0, 10)], [], None), memory_of((0, 4)), lambda _, size: bytes(size))
    balloon.write_config(12, struct.pack("<I", value), poison_offered=True)
    assert balloon.config.poison_val == value
    assert keeps(balloon) == (value != 0)


def test_inflated_pages_of_a_poisoned_guest_are_kept_too() -> None:
    balloon = VirtioBalloon(features=POISON, config=BalloonConfig(poison_val=1))
    plan = inflate(pfns(1, 2, 9), memory_of((0, 4)), balloon=balloon)
    assert plan.discards == []
    assert [each.reason for each in plan.refused] == [Refusal.POISON] * 2
    assert (plan.ranges, plan.bytes) == (2, 3 * P)


# -- statistics -------------------------------------------------------------------------------------------------------


def serve_bytes(queue: BalloonQueue, chain: Chain, data: bytes, balloon: VirtioBalloon | None = None) -> Outcome:
    """Serve a chain over ``data`` at :data:`ARRAY`."""

    def read_guest(address: int, length: int) -> bytes:
        start = address - ARRAY
        assert 0 <= start <= start + length <= len(data)
        return data[start : start + length]

    return (balloon or VirtioBalloon()).serve(queue, chain, memory_of((0, 16)), read_guest)


@given(cuts=st.lists(st.integers(0, 20), max_size=5))
def test_statistics_are_read_from_any_number_of_buffers_and_held(cuts: list[int]) -> None:
    data = struct.pack("<HQHQHQ", 4, 1 << 20, 5, 1 << 30, 77, 7) + b"odd"
    buffers: list[Buffer] = []
    at = 0
    for length in (*cuts, len(data)):
        length = min(length, len(data) - at)
        buffers.append((ARRAY + at, length))
        at += length
    outcome = serve_bytes(BalloonQueue.STATS, Chain(0, buffers, [(0, P)], None), data)
    assert outcome.statistics == BalloonStatistics({"memfree": 1 << 20, "memtot": 1 << 30}, unknown=1)
    assert outcome.hold
    assert (outcome.plan.discards, outcome.plan.refused) == ([], [])


def test_huge_statistics_buffer_is_read_up_to_the_limit() -> None:
    chain = Chain(0, [(ARRAY, 2**32 - 1)], [], None)
    outcome = serve_bytes(BalloonQueue.STATS, chain, bytes(STATISTICS_BYTES_MAX))
    assert outcome.statistics == BalloonStatistics({"swap_in": 0})
    assert [each.reason for each in outcome.plan.refused] == [Refusal.TOO_LONG]


# -- free page hinting ------------------------------------------------------------------------------------------------

BLOCKS: list[Buffer] = [(2 * P, 4 * P), (8 * P, P)]


def hint(balloon: VirtioBalloon, command: int | None, blocks: list[Buffer], *, cut: int = 4) -> Outcome:
    """Serve a chain with ``command`` in two buffers cut after ``cut`` bytes, and ``blocks``."""
    readable = [] if command is None else [(ARRAY, cut), (ARRAY + cut, 4 - cut)]
    data = struct.pack("<I", command or 0)
    return serve_bytes(BalloonQueue.FREE_PAGE, Chain(0, readable, blocks, None), data, balloon)


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_hinted_blocks_of_the_round_are_discarded(cut: int) -> None:
    balloon = VirtioBalloon()
    command_id = balloon.hinting.start()
    begun = hint(balloon, command_id, [], cut=cut)
    assert (begun.command_id, begun.hint_id, begun.plan.discards, begun.hold) == (command_id, command_id, [], False)
    given = hint(balloon, None, BLOCKS)
    assert given.plan.discards == [FileRange(0, 2 * P, 4 * P), FileRange(0, 8 * P, P)]
    ended = hint(balloon, 0, [])
    assert (ended.command_id, ended.hint_id) == (0, None)
    assert hint(balloon, None, BLOCKS).plan.discards == []


def test_command_and_blocks_in_one_chain() -> None:
    balloon = VirtioBalloon()
    assert len(hint(balloon, balloon.hinting.start(), BLOCKS).plan.discards) == 2
    assert hint(balloon, 0, BLOCKS).plan.discards == []


def test_hinted_blocks_without_a_round_are_kept_and_told() -> None:
    plan = hint(VirtioBalloon(), None, BLOCKS).plan
    assert (plan.ranges, plan.bytes, plan.discards) == (2, 5 * P, [])
    assert [each.reason for each in plan.refused] == [Refusal.STALE_HINT] * 2


@pytest.mark.parametrize("lengths", [(3,), (5,), (0,), (8,), (2**32 - 1,), (4, 4)])
def test_command_of_another_size_is_none_and_ends_what_went_before(lengths: tuple[int, ...]) -> None:
    balloon = VirtioBalloon()
    hint(balloon, balloon.hinting.start(), [])
    chain = Chain(0, [(ARRAY, length) for length in lengths], BLOCKS, None)
    outcome = serve_bytes(BalloonQueue.FREE_PAGE, chain, b"", balloon)
    assert (outcome.command_id, outcome.plan.discards) == (None, [])
    reasons = [each.reason for each in outcome.plan.refused]
    assert reasons == [Refusal.BAD_COMMAND] * len(lengths) + [Refusal.STALE_HINT] * 2
    assert hint(balloon, None, BLOCKS).plan.discards == []


def test_hinted_blocks_are_judged_like_reported_ones() -> None:
    balloon = VirtioBalloon()
    hint(balloon, balloon.hinting.start(), [])
    plan = hint(balloon, None, [(P, P), (P + 1, P), (1 << 40, P), (3 * P, 0)]).plan
    assert plan.discards == [FileRange(0, P, P)]
    assert [each.reason for each in plan.refused] == [Refusal.UNALIGNED, Refusal.OUT_OF_RANGE, Refusal.EMPTY]


@pytest.mark.parametrize(
    ("balloon", "reason"),
    [
        (VirtioBalloon(discard=False), Refusal.DISCARD_OFF),
        (VirtioBalloon(features=POISON, config=BalloonConfig(poison_val=1)), Refusal.POISON),
    ],
)
def test_hinted_blocks_of_a_guest_that_keeps_its_pages_are_kept(balloon: VirtioBalloon, reason: Refusal) -> None:
    plan = hint(balloon, balloon.hinting.start(), BLOCKS).plan
    assert plan.discards == []
    assert {each.reason for each in plan.refused} == {reason}


def test_reset_ends_the_round() -> None:
    balloon = VirtioBalloon()
    balloon.config = BalloonConfig(free_page_hint_cmd_id=balloon.hinting.start())
    hint(balloon, 2, [])
    balloon.reset()
    assert balloon.config.free_page_hint_cmd_id == 0
    assert hint(balloon, None, BLOCKS).plan.discards == []
