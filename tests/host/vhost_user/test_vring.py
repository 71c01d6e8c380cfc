"""One queue as it is configured: which values a ring can have, where it lies, and when it has all that it takes."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.vhost_user.vring import TRANSITIONS, RingEvent, RingState, Vring
from protocol.errors import VhostUserError
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.vhost_user_payloads import VringAddress

USER = 0x7F00_0000_0000
TABLE = RegionTable(
    [
        MemoryRegion(guest_address=GuestAddress(0), size=0x10000, user_address=UserAddress(USER), mmap_offset=0x1000),
        MemoryRegion(
            guest_address=GuestAddress(0x10000),
            size=0x10000,
            user_address=UserAddress(USER + 0x10000),
            mmap_offset=0x8000,
        ),
    ]
)


def at(descriptor: int, available: int, used: int, *, flags: int = 0, log: int = 0) -> VringAddress:
    """Return addresses, given as offsets from the beginning of the user memory."""
    return VringAddress(
        index=2,
        flags=flags,
        descriptor=UserAddress(USER + descriptor),
        available=UserAddress(USER + available),
        used=UserAddress(USER + used),
        log=log,
    )


@pytest.mark.parametrize("size", [1 << exponent for exponent in range(16)])
def test_size_is_any_power_of_two_up_to_32768(size: int) -> None:
    vring = Vring(2)
    vring.set_size(size)
    assert vring.size == size


@pytest.mark.parametrize("size", [0, 3, 129, 32769, 65536, 2**32 - 1])
def test_size_that_is_invalid_is_refused_and_the_old_one_kept(size: int) -> None:
    vring = Vring(2, size=64)
    with pytest.raises(VhostUserError, match=f"queue size {size} (is not from|of a split ring is not)"):
        vring.set_size(size)
    assert vring.size == 64


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (at(0x1008, 0x2000, 0x3000), "descriptor table of queue 2 at 0x7f0000001008 is not 16-byte aligned"),
        (at(0x1000, 0x2001, 0x3000), "available ring of queue 2 at 0x7f0000002001 is not 2-byte aligned"),
        (at(0x1000, 0x2000, 0x3002), "used ring of queue 2 at 0x7f0000003002 is not 4-byte aligned"),
        (at(-0x10, 0x2000, 0x3000), "descriptor table of queue 2 .* outside the guest's memory"),
        (at(0x1000, 0x20000, 0x3000), "available ring of queue 2 .* outside the guest's memory"),
        (at(0x1000, 0x2000, (1 << 64) - USER - 4), "used ring of queue 2 .* outside the guest's memory"),
    ],
)
def test_impossible_addresses_are_refused_and_the_old_ones_kept(address: VringAddress, complaint: str) -> None:
    old = at(0, 0x2000, 0x3000)
    vring = Vring(2, address=old)
    with pytest.raises(VhostUserError, match=complaint):
        vring.set_address(address, TABLE)
    assert vring.address is old


def test_smallest_alignment_of_each_part_is_enough() -> None:
    vring = Vring(2)
    vring.set_address(at(0x10, 0x2, 0x4), TABLE)
    assert vring.address == at(0x10, 0x2, 0x4)


def test_place_of_a_ring_is_judged_only_with_memory() -> None:
    vring = Vring(2, size=1)
    vring.set_address(at(1 << 30, 1 << 30, 1 << 30), RegionTable())
    with pytest.raises(VhostUserError, match="not in one memory region"):
        vring.place(RegionTable())


def test_place_is_three_ranges_of_files() -> None:
    vring = Vring(2, size=256, address=at(0x1000, 0x2000, 0x13000))
    place = vring.place(TABLE)
    assert place.size == 256
    assert place.descriptor == FileRange(0, 0x2000, 4096)
    assert place.available == FileRange(0, 0x3000, 518)
    assert place.used == FileRange(1, 0xB000, 2054)
    assert place.parts == (place.descriptor, place.available, place.used)


@pytest.mark.parametrize(
    ("address", "part"),
    [
        (at(0xFFF0, 0x2000, 0x3000), "descriptor table"),
        (at(0x1000, 0xFFFC, 0x3000), "available ring"),
        (at(0x1000, 0x2000, 0xFFF0), "used ring"),
        (at(0x1F800, 0x2000, 0x3000), "descriptor table"),
    ],
)
def test_part_that_straddles_two_regions_or_sticks_out_has_no_place(address: VringAddress, part: str) -> None:
    with pytest.raises(VhostUserError, match=f"{part} of queue 2, .* is not in one memory region"):
        Vring(2, size=256, address=address).place(TABLE)


@given(exponent=st.integers(0, 8))
def test_part_may_end_where_its_region_ends(exponent: int) -> None:
    size = 1 << exponent
    end = 0x20000
    vring = Vring(2, size=size, address=at(end - 16 * size, 0, 0x4000))
    assert vring.place(TABLE).descriptor.offset + 16 * size == 0x8000 + 0x10000
    vring.address = at(end - 16 * size + 16, 0, 0x4000)
    with pytest.raises(VhostUserError, match="not in one memory region"):
        vring.place(TABLE)


def test_ring_is_wanted_only_when_everything_is_there() -> None:
    for state, enabled, sized, placed in product(RingState, (False, True), (False, True), (False, True)):
        vring = Vring(
            2,
            size=256 if sized else 0,
            address=at(0, 0x2000, 0x3000) if placed else None,
            state=state,
            enabled=enabled,
        )
        may_run = state in (RingState.STARTED, RingState.RUNNING)
        assert vring.is_wanted is (may_run and enabled and sized and placed)


def test_ring_moves_as_the_table_says_and_in_no_other_way() -> None:
    for state, event in product(RingState, RingEvent):
        vring = Vring(2, state=state)
        if (state, event) in TRANSITIONS:
            vring.move(event)
            assert vring.state is TRANSITIONS[state, event]
        else:
            with pytest.raises(KeyError):
                vring.move(event)
            assert vring.state is state
    assert {state for state, _ in TRANSITIONS} == set(RingState) == set(TRANSITIONS.values())


def test_ring_is_at_the_same_place_with_any_log_address() -> None:
    vring = Vring(2, address=at(0, 0x2000, 0x3000))
    assert vring.is_at(at(0, 0x2000, 0x3000, flags=1, log=0x999))
    for other in (at(0x10, 0x2000, 0x3000), at(0, 0x2002, 0x3000), at(0, 0x2000, 0x3004)):
        assert not vring.is_at(other)
    assert not Vring(2).is_at(at(0, 0, 0))


def test_reset_forgets_everything() -> None:
    vring = Vring(
        2,
        size=256,
        base=7,
        address=at(0, 0x2000, 0x3000),
        state=RingState.BROKEN,
        enabled=True,
        parked="why",
        signal_first=True,
    )
    vring.reset()
    assert vring == Vring(2)


def test_packed_ring_has_any_size_and_three_parts_of_its_own() -> None:
    vring = Vring(2)
    vring.set_size(100, packed=True)
    vring.set_address(at(0x1000, 0x2004, 0x13008), TABLE, packed=True)
    place = vring.place(TABLE, packed=True)
    assert (place.size, place.packed) == (100, True)
    assert place.descriptor == FileRange(0, 0x2000, 1600)
    assert place.available == FileRange(0, 0x3004, 4)
    assert place.used == FileRange(1, 0xB008, 4)


@pytest.mark.parametrize("size", [0, 32769])
def test_sizes_that_a_packed_ring_has_not_are_refused(size: int) -> None:
    vring = Vring(2, size=64)
    with pytest.raises(VhostUserError, match=f"queue size {size} is not from 1 to 32768"):
        vring.set_size(size, packed=True)
    assert vring.size == 64


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (at(0x1008, 0x2000, 0x3000), "descriptor ring of queue 2 at 0x7f0000001008 is not 16-byte aligned"),
        (at(0x1000, 0x2002, 0x3000), "driver event area of queue 2 at 0x7f0000002002 is not 4-byte aligned"),
        (at(0x1000, 0x2000, 0x3002), "device event area of queue 2 at 0x7f0000003002 is not 4-byte aligned"),
    ],
)
def test_parts_of_a_packed_ring_are_judged_also_when_they_came_before_the_features(
    address: VringAddress, complaint: str
) -> None:
    with pytest.raises(VhostUserError, match=complaint):
        Vring(2).set_address(address, TABLE, packed=True)
    with pytest.raises(VhostUserError, match=complaint):
        Vring(2, size=4, address=address).place(TABLE, packed=True)


def test_size_that_only_a_packed_ring_has_is_refused_for_a_split_one() -> None:
    with pytest.raises(VhostUserError, match="queue size 100 of a split ring is not a power of two"):
        Vring(2, size=100, address=at(0, 0x2000, 0x3000)).place(TABLE)
