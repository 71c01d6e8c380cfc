"""Memory regions: what overlaps or wraps is refused, and an address means one place in one file or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE, FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress

TOP = 1 << 64


def region(guest: int, size: int, user: int | None = None, offset: int = 0) -> MemoryRegion:
    """Return a region; by default its user addresses are its guest addresses."""
    return MemoryRegion(
        guest_address=GuestAddress(guest),
        size=size,
        user_address=UserAddress(guest if user is None else user),
        mmap_offset=offset,
    )


@st.composite
def disjoint_regions(draw: st.DrawFn, most: int = 6) -> list[MemoryRegion]:
    """Regions with gaps of zero or more bytes between them, in guest and user space, listed in any order."""
    gaps_and_sizes = draw(st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64)), min_size=1, max_size=most))
    guest = draw(st.integers(0, 1 << 40))
    regions: list[MemoryRegion] = []
    starts: list[tuple[int, int]] = []
    for gap, size in gaps_and_sizes:
        starts.append((guest + gap, size))
        guest += gap + size
    user = draw(st.integers(0, 1 << 47))
    for number in draw(st.permutations(range(len(starts)))):
        start, size = starts[number]
        user += draw(st.integers(0, 64))
        regions.append(region(start, size, user, draw(st.integers(0, 1 << 40))))
        user += size
    return draw(st.permutations(regions))


def test_page_is_4096_bytes() -> None:
    assert PAGE_SIZE == 4096


def test_empty_region_is_refused() -> None:
    with pytest.raises(VhostUserError, match="is empty"):
        RegionTable([region(0x1000, 0)])


@pytest.mark.parametrize(
    ("wrapping", "what"),
    [
        (region(TOP - 0x1000, 0x1001, user=0), "guest address"),
        (region(0, 0x1001, user=TOP - 0x1000), "user address"),
        (region(0, 0x1001, offset=TOP - 0x1000), "file offset"),
    ],
)
def test_region_that_runs_past_64_bits_is_refused(wrapping: MemoryRegion, what: str) -> None:
    with pytest.raises(VhostUserError, match=f"wraps: {what}"):
        RegionTable([wrapping])


def test_region_may_end_exactly_at_64_bits() -> None:
    table = RegionTable([region(TOP - 0x1000, 0x1000, user=0)])
    assert table.translate_guest(TOP - 1, 1) == FileRange(0, 0xFFF, 1)
    assert table.translate_guest(TOP - 1, 2) is None


def test_regions_that_share_a_guest_address_are_refused() -> None:
    with pytest.raises(VhostUserError, match="overlap at guest address 0x1fff"):
        RegionTable([region(0x1FFF, 1, user=0x9000), region(0x1000, 0x1000)])


def test_regions_that_share_a_user_address_are_refused() -> None:
    with pytest.raises(VhostUserError, match="overlap at user address 0x1000"):
        RegionTable([region(0x1000, 0x1000), region(0x8000, 0x1000, user=0x1000)])


def test_region_inside_another_is_refused_though_a_third_lies_between_their_starts() -> None:
    with pytest.raises(VhostUserError, match="overlap"):
        RegionTable([region(0, 0x9000), region(0x1000, 0x1000, user=0x10000), region(0x3000, 1, user=0x20000)])


@given(
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10), st.integers(0, 40)), min_size=1, max_size=4),
)
def test_table_is_refused_exactly_when_two_regions_share_an_address(spans: list[tuple[int, int, int]]) -> None:
    regions = [region(guest, size, user) for guest, size, user in spans]
    guest_addresses = [address for guest, size, _ in spans for address in range(guest, guest + size)]
    user_addresses = [address for _, size, user in spans for address in range(user, user + size)]
    shares = len(set(guest_addresses)) < len(guest_addresses) or len(set(user_addresses)) < len(user_addresses)
    if shares:
        with pytest.raises(VhostUserError, match="overlap"):
            RegionTable(regions)
    else:
        assert RegionTable(regions).regions == tuple(regions)


@given(regions=disjoint_regions(), data=st.data())
def test_translated_range_lies_byte_for_byte_in_the_region_that_holds_it(
    regions: list[MemoryRegion], data: st.DataObject
) -> None:
    table = RegionTable(regions)
    lowest = min(each.guest_address for each in regions)
    highest = max(each.guest_end for each in regions)
    address = data.draw(st.integers(max(0, lowest - 3), highest + 3))
    length = data.draw(st.integers(1, 80))
    holders = [
        number
        for number, each in enumerate(regions)
        if each.guest_address <= address and address + length <= each.guest_address + each.size
    ]
    found = table.translate_guest(address, length)
    if not holders:
        assert found is None
        return
    (number,) = holders
    assert found == FileRange(number, regions[number].mmap_offset + address - regions[number].guest_address, length)
    assert table.find_guest(address) == number


@given(regions=disjoint_regions(), data=st.data())
def test_user_addresses_have_a_translation_of_their_own(regions: list[MemoryRegion], data: st.DataObject) -> None:
    table = RegionTable(regions)
    number = data.draw(st.integers(0, len(regions) - 1))
    chosen = regions[number]
    inside = data.draw(st.integers(0, chosen.size - 1))
    length = data.draw(st.integers(1, chosen.size - inside))
    assert table.translate_user(chosen.user_address + inside, length) == FileRange(
        number, chosen.mmap_offset + inside, length
    )
    assert table.translate_user(chosen.user_address + inside, chosen.size - inside + 1) is None


@given(regions=disjoint_regions(), data=st.data())
def test_guest_address_of_a_translated_range_is_the_one_it_came_from(
    regions: list[MemoryRegion], data: st.DataObject
) -> None:
    table = RegionTable(regions)
    mine = data.draw(st.sampled_from(regions))
    address = mine.guest_address + data.draw(st.integers(0, mine.size - 1))
    place = table.translate_guest(address, 1)
    assert place is not None
    assert table.guest_of(place) == address


def test_empty_memory_table_is_valid() -> None:
    table = RegionTable()
    assert table.total_bytes == 0
    assert table.find_guest(0) is None
    assert table.translate_guest(0, 1) is None
    assert table.translate_user(0, 1) is None


def test_two_regions_side_by_side_are_still_two_files() -> None:
    table = RegionTable([region(0, 0x1000), region(0x1000, 0x1000, offset=0x7000)])
    assert table.translate_guest(0xFFF, 2) is None
    assert table.translate_guest(0x1000, 0x1000) == FileRange(1, 0x7000, 0x1000)


def test_added_region_is_the_last_one_and_the_old_table_stays_as_it_was() -> None:
    old = RegionTable([region(0x8000, 0x1000)])
    new = old.with_region(region(0, 0x1000))
    assert [each.guest_address for each in new.regions] == [0x8000, 0]
    assert len(old.regions) == 1
    assert new.total_bytes == 0x2000
    with pytest.raises(VhostUserError, match="overlap"):
        new.with_region(region(0x8800, 0x1000, user=0))


def test_region_is_found_again_by_addresses_and_size_at_any_offset() -> None:
    table = RegionTable([region(0, 0x1000), region(0x2000, 0x1000, offset=0x5000)])
    assert table.number_of(region(0x2000, 0x1000, offset=0)) == 1
    assert [each.guest_address for each in table.without(0).regions] == [0x2000]


@pytest.mark.parametrize(
    "stranger", [region(0x2000, 0x2000), region(0x3000, 0x1000), region(0x2000, 0x1000, user=0x9000)]
)
def test_region_of_other_addresses_or_size_is_not_found(stranger: MemoryRegion) -> None:
    table = RegionTable([region(0x2000, 0x1000)])
    with pytest.raises(VhostUserError, match="no memory region at guest address"):
        table.number_of(stranger)
