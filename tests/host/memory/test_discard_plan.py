"""The one place that judges a guest's addresses, against a definition of what may be discarded by brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.memory.discard_plan import JOINED_MAX, DeviceMemory, DiscardPlan, Refusal, RefusedRanges, joined
from host.virtqueue.virtqueue import Buffer
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress

P = 4096
MIB = 1 << 20


def region(guest: int, pages: int, *, user: int = 0, offset: int = 0) -> MemoryRegion:
    """Return a region of whole pages."""
    return MemoryRegion(
        guest_address=GuestAddress(guest), size=pages * P, user_address=UserAddress(user), mmap_offset=offset
    )


def plan_of(memory: DeviceMemory, *buffers: Buffer, off_limits: Buffer | None = None) -> DiscardPlan:
    """Return the plan for ``buffers``."""
    return memory.plan(buffers, off_limits)


def reasons(plan: DiscardPlan) -> list[str]:
    """Return why ranges were refused, in order."""
    return [refused.reason.value for refused in plan.refused]


@st.composite
def memories(draw: st.DrawFn) -> tuple[DeviceMemory, list[FileRange]]:
    """Some small memory: regions side by side or apart, files with pages of 4 or 16 KiB, rings here and there."""
    regions: list[MemoryRegion] = []
    page_sizes: list[int] = []
    guest = draw(st.integers(0, 8)) * P
    for number in range(draw(st.integers(1, 3))):
        guest += draw(st.sampled_from([0, 0, P, 3 * P]))
        size = draw(st.integers(1, 16))
        offset = draw(st.sampled_from([0, P, 4 * P, 64 * P]))
        regions.append(region(guest, size, user=number << 40, offset=offset))
        page_sizes.append(draw(st.sampled_from([P, P, 4 * P])))
        guest += size * P
    protected = []
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(regions) - 1))
        begin = draw(st.integers(0, regions[number].size - 1))
        length = draw(st.integers(1, regions[number].size - begin))
        protected.append(FileRange(number, regions[number].mmap_offset + begin, min(length, 2 * P)))
    return DeviceMemory(RegionTable(regions), tuple(page_sizes), protected), protected


def judged(
    memory: DeviceMemory, rings: list[FileRange], buffer: Buffer, off_limits: Buffer | None
) -> FileRange | Refusal:
    """The definition, page by page and byte by byte as far as that is possible."""
    address, length = buffer
    if length == 0:
        return Refusal.EMPTY
    holders = [
        number
        for number, each in enumerate(memory.table.regions)
        if each.guest_address <= address < each.guest_address + each.size
    ]
    if not holders:
        return Refusal.OUT_OF_RANGE
    (number,) = holders
    mine = memory.table.regions[number]
    if address + length > mine.guest_address + mine.size:
        return Refusal.CROSSES_REGIONS
    offset = mine.mmap_offset + address - mine.guest_address
    page = memory.page_sizes[number]
    if offset % page or length % page:
        return Refusal.UNALIGNED
    pages = set(range(offset // page, (offset + length) // page))
    for ring in rings:
        if ring.region == number and pages & set(
            range(ring.offset // page, (ring.offset + ring.length - 1) // page + 1)
        ):
            return Refusal.RING_MEMORY
    if off_limits is not None and off_limits[0] < address + length and address < off_limits[0] + off_limits[1]:
        return Refusal.RING_MEMORY
    return FileRange(number, offset, length)


@pytest.mark.long
@given(setting=memories(), data=st.data())
@settings(max_examples=250)
def test_plan_is_what_the_definition_says(setting: tuple[DeviceMemory, list[FileRange]], data: st.DataObject) -> None:
    memory, rings = setting
    last = max(each.guest_end for each in memory.table.regions)
    addresses = st.one_of(st.integers(0, last // P + 2).map(lambda page: page * P), st.integers(0, last + P))
    lengths = st.one_of(st.integers(0, 20).map(lambda pages: pages * P), st.integers(0, 5 * P))
    buffers = data.draw(st.lists(st.tuples(addresses, lengths), min_size=1, max_size=10))
    table: Buffer | None = None
    if data.draw(st.booleans()):
        home = memory.table.regions[data.draw(st.integers(0, len(memory.table.regions) - 1))]
        begin = data.draw(st.integers(0, home.size - 16))
        table = (home.guest_address + begin, 16 * data.draw(st.integers(1, min(512, (home.size - begin) // 16))))
    plan = plan_of(memory, *buffers, off_limits=table)
    expected = [judged(memory, rings, buffer, table) for buffer in buffers]
    assert plan.discards == [each for each in expected if isinstance(each, FileRange)]
    assert [(refused.reason, (refused.address, refused.length)) for refused in plan.refused] == [
        (each, buffer) for each, buffer in zip(expected, buffers, strict=True) if isinstance(each, Refusal)
    ]
    assert (plan.ranges, plan.bytes) == (len(buffers), sum(length for _, length in buffers))


def test_alignment_is_that_of_the_file_not_of_the_guest_address() -> None:
    # User Mode Linux's memory begins at any 4 KiB page of the guest, a back-end file may begin off its own page.
    odd = DeviceMemory(RegionTable([region(0xC4F000, 64, offset=0xC4F000)]))
    assert plan_of(odd, (0xC50000, 4 * P)).discards == [FileRange(0, 0xC50000, 4 * P)]
    shifted = DeviceMemory(RegionTable([region(0x10000, 64, offset=0x200)]))
    assert reasons(plan_of(shifted, (0x10000, P))) == ["unaligned"]
    plan = plan_of(shifted, (0x10000 + P - 0x200, P), (0x10000 + 2 * P, P), (0x10000 + 3 * P - 0x200, P))
    assert plan.discards == [FileRange(0, P, P), FileRange(0, 3 * P, P)]
    assert reasons(plan) == ["unaligned"]


def test_huge_pages_are_discarded_whole_or_not_at_all() -> None:
    huge = DeviceMemory(RegionTable([region(0, 2048)]), (2 * MIB,), [FileRange(0, 5 * MIB, 100)])
    plan = plan_of(huge, (0, 2 * MIB), (2 * MIB, MIB), (MIB, 2 * MIB), (4 * MIB, 2 * MIB), (6 * MIB, 2 * MIB))
    assert plan.discards == [FileRange(0, 0, 2 * MIB), FileRange(0, 6 * MIB, 2 * MIB)]
    assert reasons(plan) == ["unaligned", "unaligned", "ring_memory"]


def test_ring_protects_the_whole_pages_it_lies_on() -> None:
    memory = DeviceMemory(RegionTable([region(0, 16)]), protected=[FileRange(0, 3 * P + 4000, 200)])
    plan = plan_of(memory, *[(page * P, P) for page in range(2, 6)])
    assert plan.discards == [FileRange(0, 2 * P, P), FileRange(0, 5 * P, P)]
    assert reasons(plan) == ["ring_memory"] * 2
    assert memory.is_protected(FileRange(0, 3 * P, 1))
    assert not memory.is_protected(FileRange(0, 2 * P, P))


def test_pages_between_two_rings_are_served() -> None:
    memory = DeviceMemory(
        RegionTable([region(0, 16)]), protected=[FileRange(0, P, P), FileRange(0, 8 * P, P), FileRange(0, 10 * P, 1)]
    )
    assert plan_of(memory, (2 * P, 6 * P), (9 * P, P)).refused == []


def test_ring_of_another_region_at_the_same_offset_protects_nothing_here() -> None:
    table = RegionTable([region(0, 4), region(0x100000, 4, user=1 << 40)])
    memory = DeviceMemory(table, protected=[FileRange(1, 0, P)])
    assert plan_of(memory, (0, 4 * P)).discards == [FileRange(0, 0, 4 * P)]
    assert reasons(plan_of(memory, (0x100000, 4 * P))) == ["ring_memory"]


def test_address_space_that_ends_at_64_bits_does_not_wrap() -> None:
    top = (1 << 64) - 16 * P
    memory = DeviceMemory(RegionTable([region(top, 16, offset=0)]))
    assert plan_of(memory, (top + 15 * P, P)).discards == [FileRange(0, 15 * P, P)]
    assert reasons(plan_of(memory, (top + 15 * P, 2 * P))) == ["crosses_regions"]


def test_ranges_without_memory_are_out_of_range() -> None:
    assert reasons(plan_of(DeviceMemory(RegionTable()), (0, P), (1 << 40, P))) == ["out_of_range"] * 2


def test_refusals_are_summed_by_reason_in_the_order_they_came_up() -> None:
    memory = DeviceMemory(RegionTable([region(0, 16)]))
    plan = plan_of(memory, (1, P), (P, 0), (2 * P, 5), (0, P))
    assert plan.refused_by_reason() == [
        RefusedRanges(Refusal.UNALIGNED, 1, P + 5, 2),
        RefusedRanges(Refusal.EMPTY, P, 0, 1),
    ]


@given(setting=memories(), data=st.data())
def test_run_of_pages_is_cut_so_that_each_piece_is_good_or_bad_as_a_whole(
    setting: tuple[DeviceMemory, list[FileRange]], data: st.DataObject
) -> None:
    memory, rings = setting
    pages = max(each.guest_end for each in memory.table.regions) // P + 3
    first = data.draw(st.integers(0, pages))
    count = data.draw(st.integers(1, pages))
    pieces = list(memory.split_pages(first * P, count * P))
    covered = [address + offset for address, length in pieces for offset in range(0, length, P)]
    assert covered == [page * P for page in range(first, first + count)]
    if set(memory.page_sizes) != {P}:
        return
    for address, length in pieces:
        whole = isinstance(judged(memory, rings, (address, length), None), FileRange)
        for page in range(address, address + length, P):
            assert isinstance(judged(memory, rings, (page, P), None), FileRange) is whole


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (Refusal.EMPTY, "empty"),
        (Refusal.UNALIGNED, "unaligned"),
        (Refusal.OUT_OF_RANGE, "out_of_range"),
        (Refusal.CROSSES_REGIONS, "crosses_regions"),
        (Refusal.RING_MEMORY, "ring_memory"),
        (Refusal.READABLE, "readable"),
        (Refusal.TOO_LONG, "too_long"),
        (Refusal.POISON, "poison"),
        (Refusal.DISCARD_OFF, "discard_off"),
        (Refusal.DISCARD_FAILED, "discard_failed"),
    ],
)
def test_words_of_the_refused_event_stay_what_they_are(reason: Refusal, word: str) -> None:
    assert reason.value == word


def test_page_of_a_ring_is_off_limits_through_every_region_of_its_file() -> None:
    """Two regions of one file: the ring is reached by both, and neither gives its page away."""
    first = MemoryRegion(guest_address=GuestAddress(0), size=8 * P, user_address=UserAddress(0), mmap_offset=0)
    second = MemoryRegion(
        guest_address=GuestAddress(64 * P), size=8 * P, user_address=UserAddress(64 * P), mmap_offset=0
    )
    table = RegionTable([first, second])
    ring = FileRange(0, 3 * P, 100)
    memory = DeviceMemory(table, (P, P), [ring], ("file", "file"))
    plan = memory.plan([(64 * P, P), (67 * P, P), (3 * P, P)])
    assert plan.discards == [FileRange(1, 0, P)]
    assert [(reason, address) for reason, address, _ in plan.refused] == [
        (Refusal.RING_MEMORY, 67 * P),
        (Refusal.RING_MEMORY, 3 * P),
    ]
    assert memory.plan([(66 * P, P)], (2 * P, 16)).refused_by_reason()[0].reason is Refusal.RING_MEMORY
    apart = DeviceMemory(table, (P, P), [ring], ("file", "another"))
    assert apart.plan([(67 * P, P)]).discards == [FileRange(1, 3 * P, P)]


# -- joined ranges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "pieces"),
    [
        ([], []),
        ([(0, 0, 4)], [(0, 0, 4)]),
        ([(0, 0, 4), (0, 4, 4), (0, 8, 1)], [(0, 0, 9)]),
        ([(0, 8, 4), (0, 4, 4), (0, 0, 4)], [(0, 0, 12)]),
        ([(0, 4, 4), (0, 8, 4), (0, 0, 4)], [(0, 0, 12)]),
        ([(0, 0, 4), (0, 5, 4)], [(0, 0, 4), (0, 5, 4)]),
        ([(0, 0, 4), (1, 4, 4)], [(0, 0, 4), (1, 4, 4)]),
        ([(0, 0, 4), (0, 0, 4)], [(0, 0, 4), (0, 0, 4)]),
    ],
)
def test_ranges_that_touch_are_joined(places: list[tuple[int, int, int]], pieces: list[tuple[int, int, int]]) -> None:
    ranges = [FileRange(region, offset * P, length * P) for region, offset, length in places]
    assert list(joined(ranges)) == [(region, offset * P, length * P) for region, offset, length in pieces]


def test_joined_range_is_not_longer_than_a_stop_may_wait_for() -> None:
    half = JOINED_MAX // 2
    assert list(joined([FileRange(0, half * number, half) for number in range(5)])) == [
        (0, 0, JOINED_MAX),
        (0, JOINED_MAX, JOINED_MAX),
        (0, 2 * JOINED_MAX, half),
    ]
    assert list(joined([FileRange(0, 0, 3 * JOINED_MAX)])) == [(0, 0, 3 * JOINED_MAX)]


@given(places=st.lists(st.builds(FileRange, st.integers(0, 1), st.integers(0, 30), st.integers(1, 8)), max_size=30))
def test_joined_ranges_cover_what_the_ranges_cover(places: list[FileRange]) -> None:
    def covered(ranges: list[tuple[int, int, int]]) -> set[tuple[int, int]]:
        return {(region, at) for region, offset, length in ranges for at in range(offset, offset + length)}

    pieces = list(joined(places))
    assert covered(pieces) == covered([tuple(place) for place in places])  # type: ignore[misc]
    assert sum(length for _, _, length in pieces) == sum(place.length for place in places)
