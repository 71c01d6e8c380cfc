"""The device's half of a packed ring against a hostile driver: a ring of any content ends in a chain or a refusal."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.virtqueue.virtqueue import INDIRECT_MAX, Buffer, Chain
from protocol.errors import VhostUserError, VirtqueueError
from protocol.packed_ring import FRESH_BASE, PACKED_DESCRIPTOR, WRAP_COUNTER, used_bits
from scripts.check.model.ring_memory import BASE
from tests.host.virtqueue.hostile_packed_ring import Hostile

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000


# -- what is available ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, USED, AVAIL | USED])
def test_descriptor_is_available_in_lap_1_only_with_avail_and_without_used(bits: int) -> None:
    ring = Hostile()
    ring.ring.halves[7] = bits
    assert ring.device.pop() is None
    ring.ring.halves[7] = AVAIL
    assert ring.device.pop() is not None


@pytest.mark.parametrize("bits", [0, AVAIL, AVAIL | USED])
def test_descriptor_is_available_in_lap_2_only_with_used_and_without_avail(bits: int) -> None:
    ring = Hostile(base=1 | 1 << 16)
    ring.ring.halves[8 + 7] = bits
    assert ring.device.pop() is None
    ring.ring.halves[8 + 7] = USED
    assert ring.device.pop() is not None


def test_buffer_id_need_not_be_the_place() -> None:
    ring = Hostile().offer((0x1000, 1, 0xFFFF, 0), (0x2000, 2, 3, WRITE))
    assert ring.pop() == Chain(0xFFFF, [(0x1000, 1)], [], None)
    assert ring.pop() == Chain(3, [], [(0x2000, 2)], None)
    assert ring.device.pop() is None


def test_list_has_the_buffer_id_of_its_last_descriptor() -> None:
    ring = Hostile().offer((0x1000, 1, 11, NEXT), (0x2000, 2, 12, NEXT | WRITE), (0x3000, 3, 13, WRITE))
    assert ring.pop() == Chain(13, [(0x1000, 1)], [(0x2000, 2), (0x3000, 3)], None)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_list_over_the_end_of_the_ring_turns_the_wrap_counter_on_the_way(size: int) -> None:
    position = (size - 1) | WRAP_COUNTER
    ring = Hostile(size, base=position | position << 16)
    ring.offer((0x1000, 1, 1, NEXT | WRITE), (0x2000, 2, 2, WRITE))
    assert ring.serve().writable == [(0x1000, 1), (0x2000, 2)]
    assert ring.ring.halves[8 * (size - 1) + 6] == 2
    assert ring.ring.halves[8 * (size - 1) + 7] == AVAIL | USED  # of the lap in which the list began
    assert ring.ring.halves[7] == WRITE | USED  # skipped: as the driver left it
    assert ring.device.base == 1 | 1 << 16


def test_used_descriptors_are_written_with_the_wrap_counter_of_their_lap() -> None:
    ring = Hostile(3)
    for number in range(9):
        ring.offer((0, 1, number, WRITE))
        at, wrap = number % 3, (number // 3) % 2 == 0
        assert ring.serve(number).head == number
        assert ring.ring.halves[8 * at + 7] == used_bits(wrap) | (WRITE if number else 0)
        assert (ring.ring.halves[8 * at + 6], ring.ring.words[4 * at + 2]) == (number, number)


def test_used_descriptor_says_write_only_if_something_was_written() -> None:
    ring = Hostile().offer((0x1000, 8, 1, WRITE), (0x1000, 8, 2, WRITE))
    ring.serve(0)
    ring.serve(8)
    assert [ring.ring.halves[8 * index + 7] for index in (0, 1)] == [AVAIL | USED, AVAIL | USED | WRITE]
    assert ring.ring.read_descriptor(0)[0] == 0x1000  # the address is left alone


def test_buffers_that_come_back_out_of_order_skip_as_much_as_they_occupied() -> None:
    ring = Hostile().offer((1, 1, 5, NEXT), (2, 1, 5, NEXT), (3, 1, 5, 0), (4, 1, 6, 0))
    three, one = ring.pop(), ring.pop()
    ring.device.add_used(one.head, 0)
    ring.device.add_used(three.head, 0)
    assert [ring.ring.halves[8 * index + 6] for index in (0, 1)] == [6, 5]
    assert ring.device.base >> 16 == 4 | WRAP_COUNTER


# -- what is refused --------------------------------------------------------------------------------------------------


def test_list_that_is_available_in_part_is_refused() -> None:
    Hostile().offer((1, 1, 5, NEXT)).refuses("descriptor 1 of a list is not available though its first one is")


@pytest.mark.parametrize("size", [1, 3, 8])
def test_list_without_an_end_is_refused(size: int) -> None:
    ring = Hostile(size).offer(*[(0, 1, 0, NEXT)] * size)
    ring.refuses(f"longer than its ring of {size}")


def test_list_as_long_as_the_ring_is_taken() -> None:
    ring = Hostile(5).offer(*[(number, 1, 9, NEXT * (number < 4)) for number in range(5)])
    assert ring.serve() == Chain(9, [(number, 1) for number in range(5)], [], None)
    assert ring.device.base == 0  # the lap is over on both sides


def test_id_that_is_in_flight_is_refused() -> None:
    ring = Hostile().offer((1, 1, 5, 0), (2, 1, 5, 0))
    ring.pop()
    ring.refuses("buffer id 5 is available a second time before it was used")


def test_id_may_come_again_once_it_was_used() -> None:
    ring = Hostile(4)
    for number in range(20):
        assert ring.offer((number, 1, 5, 0)).serve().readable == [(number, 1)]


def test_list_longer_than_the_ring_is_refused() -> None:
    ring = Hostile(2).offer((1, 1, 1, 0), (2, 1, 2, 0))
    ring.pop()
    ring.pop()
    ring.offer((3, 1, 3, 0)).refuses("more than 2 descriptors are in flight")


def test_readable_after_writable_is_refused() -> None:
    Hostile().offer((1, 1, 1, WRITE | NEXT), (2, 1, 1, 0)).refuses("device-readable descriptor follows")


@pytest.mark.parametrize("flags", [(NEXT, INDIRECT), (INDIRECT | NEXT, 0)], ids=["last", "first"])
def test_indirect_descriptor_in_a_list_is_refused(flags: tuple[int, int]) -> None:
    ring = Hostile()
    ring.offer(*[(ring.table, 16, 1, each) for each in flags]).refuses("an indirect descriptor in a list")
    assert ring.memory.reads == []


@pytest.mark.parametrize("base", [8, 8 << 16, 0x7FFF | WRAP_COUNTER, 2 | 5 << 16, 0x80000000 | 1 << 15 | 1 << 16])
def test_base_outside_the_ring_is_refused(base: int) -> None:
    with pytest.raises(VhostUserError, match=f"base {base:#x} is not a place in a packed ring of 8"):
        Hostile(8, base=base)


# -- indirect tables --------------------------------------------------------------------------------------------------


def test_indirect_descriptor_is_a_whole_report() -> None:
    ring = Hostile(2)
    chain = ring.offer_table(*[(n << 22, 4 << 20, 0, WRITE) for n in range(32)]).pop()
    assert chain == Chain(7, [], [(n << 22, 4 << 20) for n in range(32)], (ring.table, 512))
    assert ring.memory.reads == [(ring.table, 512)]


def test_indirect_table_heeds_the_write_flag_alone() -> None:
    ring = Hostile().offer_table((1, 1, 99, NEXT | AVAIL), (2, 2, 98, INDIRECT), (3, 3, 97, WRITE | 0xFFF8))
    assert ring.pop() == Chain(7, [(1, 1), (2, 2)], [(3, 3)], (ring.table, 48))


def test_write_flag_of_the_descriptor_that_refers_to_a_table_is_ignored() -> None:
    ring = Hostile().offer_table((1, 1, 0, 0), flags=WRITE)
    assert ring.pop().readable == [(1, 1)]


def test_readable_after_writable_inside_a_table_is_refused() -> None:
    Hostile().offer_table((1, 1, 0, WRITE), (2, 1, 0, 0)).refuses("device-readable descriptor follows")


def test_indirect_descriptor_that_was_not_negotiated_is_refused() -> None:
    Hostile(indirect_desc=False).offer_table((1, 1, 0, 0)).refuses("INDIRECT_DESC was not negotiated")


@pytest.mark.parametrize("length", [0, 8, 15, 17, 24, 16 * INDIRECT_MAX + 16, 2**32 - 16, 2**32 - 1])
def test_table_of_an_impossible_length_is_refused_unread(length: int) -> None:
    ring = Hostile().offer_table(length=length)
    ring.refuses(f"an indirect table of {length} bytes")
    assert ring.memory.reads == []


@pytest.mark.parametrize("address", [0, BASE - 8, 2**64 - 16])
def test_table_outside_the_memory_is_refused(address: int) -> None:
    Hostile().offer((address, 16, 1, INDIRECT)).refuses("outside the guest's memory")


def test_descriptor_stays_as_it_was_read() -> None:
    ring = Hostile().offer_table((0xA, 1, 0, WRITE))
    chain = ring.pop()
    ring.memory.write_guest(ring.table, PACKED_DESCRIPTOR.pack(0xBAD, 9, 0, 0))
    ring.ring.write_descriptor(0, 0xBAD, 9, 0xBAD)
    assert chain == Chain(7, [], [(0xA, 1)], (ring.table, 16))
    ring.device.add_used(chain.head, 0)
    assert ring.ring.halves[6] == 7


@given(
    base=st.sampled_from([FRESH_BASE, 0, 2 | 2 << 16, 3 | 3 << 16 | FRESH_BASE, 1 | 3 << 16 | 1 << 31]),
    descriptors=st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 6),
            st.integers(0, 3),
            st.integers(0, 7),
            st.sampled_from([0, AVAIL, USED, AVAIL | USED]),
        ),
        min_size=4,
        max_size=4,
    ),
    table=st.binary(max_size=96),
    serves=st.booleans(),
)
@pytest.mark.long
@settings(max_examples=500)
def test_ring_of_any_content_ends_in_chains_of_bounded_length_or_in_a_refusal(
    base: int, descriptors: list[tuple[bool, int, int, int, int]], table: bytes, serves: bool
) -> None:
    ring = Hostile(4, base=base)
    ring.memory.write_guest(ring.table, table)
    for index, (at_table, entries, buffer_id, flags, bits) in enumerate(descriptors):
        ring.ring.write_descriptor(index, ring.table if at_table else 0x9000, 16 * entries, buffer_id)
        ring.ring.halves[8 * index + 7] = flags | bits
    before = bytes(ring.memory.memory)
    buffers: list[Buffer] = []
    taken = 0
    try:
        # A served ring is used up lap by lap: what the device wrote itself is not available again.
        while taken <= 8 and (chain := ring.device.pop()) is not None:
            taken += 1
            assert 0 <= chain.head < 4
            assert 1 <= len(chain.readable) + len(chain.writable) <= 6
            buffers += chain.readable + chain.writable
            if serves:
                ring.device.add_used(chain.head, 0)
    except VirtqueueError:
        pass
    assert taken <= 8
    assert serves or bytes(ring.memory.memory) == before


@pytest.mark.long
@given(memory=st.binary(min_size=72, max_size=72), base=st.integers(0, 2**32 - 1), event_idx=st.booleans())
@settings(max_examples=500)
def test_random_memory_ends_in_chains_or_in_a_refusal(memory: bytes, base: int, event_idx: bool) -> None:
    with contextlib.suppress(VirtqueueError, VhostUserError):
        ring = Hostile(4, base=base & (FRESH_BASE | 3 | 3 << 16), event_idx=event_idx)
        ring.memory.memory[:72] = memory
        while (chain := ring.device.pop()) is not None:
            assert 1 <= len(chain.readable) + len(chain.writable) <= INDIRECT_MAX
            ring.device.add_used(chain.head, 1)
            ring.device.needs_notification()
            assert len(ring.memory.reads) <= 8  # two laps: nothing that was used is available again
        assert not ring.device.enable_notification()


# -- notifications ----------------------------------------------------------------------------------------------------


def test_driver_event_area_is_honoured() -> None:
    ring = Hostile(event_idx=True)
    wanted = []
    for word in (0, 1 << 16, 2 << 16 | WRAP_COUNTER | 2, 2 << 16 | WRAP_COUNTER | 2, 3 << 16):
        ring.ring.driver_event[0] = word
        ring.offer((1, 1, 1, 0)).serve()
        wanted.append(ring.device.needs_notification())
        assert not ring.device.needs_notification()  # nothing new since
    assert wanted == [True, False, True, False, True]


def test_event_in_the_middle_of_a_list_is_crossed_with_the_list() -> None:
    ring = Hostile(4, event_idx=True).offer((1, 1, 1, NEXT), (1, 1, 1, NEXT), (1, 1, 1, 0))
    ring.ring.driver_event[0] = 2 << 16 | WRAP_COUNTER | 1
    ring.serve()
    assert ring.device.needs_notification()


@pytest.mark.parametrize("event_idx", [False, True])
def test_sleep_asks_for_a_kick_at_the_next_descriptor(event_idx: bool) -> None:
    ring = Hostile(3, event_idx=event_idx)
    assert not ring.device.enable_notification()
    words = [ring.ring.device_event[0]]
    for _ in range(3):
        ring.offer((1, 1, 1, 0))
        assert ring.device.enable_notification()
        ring.serve()
        assert not ring.device.enable_notification()
        words.append(ring.ring.device_event[0])
    flags = 2 << 16 if event_idx else 0
    assert words == [flags | each for each in (0x8000, 0x8001, 0x8002, 0)]


# -- stopping and starting --------------------------------------------------------------------------------------------


def test_base_of_zero_is_a_fresh_ring_unless_the_first_descriptor_is_used() -> None:
    # User Mode Linux says 0 for a fresh ring. A front-end that moves a guest says it after every second lap.
    fresh = Hostile(base=0)
    assert fresh.device.base == FRESH_BASE
    fresh.ring.halves[7] = AVAIL | USED
    assert fresh.memory.device(base=0).base == 0


def test_list_that_is_put_back_is_taken_again_also_over_the_end() -> None:
    position = 2 | WRAP_COUNTER
    ring = Hostile(3, base=position | position << 16).offer((1, 1, 1, NEXT), (2, 1, 1, 0))
    before = ring.device.base
    chain = ring.pop()
    assert ring.device.base != before
    ring.device.unpop(chain)
    assert ring.device.base == before
    assert ring.memory.device(base=before).pop() == chain
    assert ring.pop() == chain


def test_memory_that_became_something_else_is_not_taken_for_the_ring() -> None:
    ring = Hostile().offer((1, 1, 1, 0))
    ring.serve()
    ring.device.enable_notification()
    token = ring.device.token
    assert ring.memory.device(base=ring.device.base).is_as_left(token)
    ring.memory.memory[:] = bytes(len(ring.memory.memory))
    assert not ring.memory.device(base=ring.device.base).is_as_left(token)


def test_place_with_lists_in_flight_can_be_gone_on_from() -> None:
    ring = Hostile(4, base=1 | 3 << 16 | 1 << 31)  # 3 used in lap 1, 1 available in lap 2: two in flight
    ring.offer((1, 1, 5, 0), (2, 1, 6, 0), (3, 1, 7, 0))
    ring.serve()
    assert ring.ring.halves[8 * 3 + 6] == 5
    ring.serve()
    assert ring.ring.halves[6] == 6


def test_completion_before_its_turn_is_held_back_in_order() -> None:
    ring = Hostile(in_order=True).offer((1, 1, 5, 0), (2, 1, 6, 0), (3, 1, 7, 0))
    chains = [ring.pop() for _ in range(3)]
    ring.device.add_used(chains[1].head, 0)
    ring.device.add_used(chains[2].head, 0)
    assert not ring.device.needs_notification()
    assert ring.ring.halves[7] == AVAIL
    ring.device.add_used(chains[0].head, 0)
    assert [ring.ring.halves[8 * index + 6] for index in range(3)] == [5, 6, 7]
    assert ring.device.needs_notification()


def test_buffer_held_in_order_goes_back_before_those_that_came_later() -> None:
    """As statistics are held: the earlier one goes back when the next has come, and the last is put back at the end."""
    ring = Hostile(in_order=True).offer((1, 1, 5, 0), (2, 1, 6, 0))
    first, second = ring.pop(), ring.pop()
    ring.device.add_used(first.head, 0)
    assert ring.device.needs_notification()
    ring.device.unpop(second)
    assert ring.ring.halves[6] == 5
    assert ring.ring.halves[8 + 7] == AVAIL  # the second is the driver's as it was
    assert ring.pop() == second
    ring.device.add_used(second.head, 0)
    assert ring.ring.halves[8 + 6] == 6
    assert ring.device.needs_notification()


def test_stores_into_the_ring_are_all_told() -> None:
    ring = Hostile(event_idx=True)
    told: list[tuple[int, int, int]] = []
    ring.device.on_write = lambda part, offset, length: told.append((part, offset, length))
    ring.offer((1, 1, 1, NEXT), (2, 1, 1, 0), (3, 1, 2, 0))
    before = bytes(ring.memory.memory)
    ring.serve()
    ring.serve()
    ring.device.enable_notification()
    assert told == [(0, 8, 8), (0, 40, 8), (2, 0, 4)]
    covered = {ring.memory.layout.offsets[part] + at + byte for part, at, length in told for byte in range(length)}
    after = bytes(ring.memory.memory)
    assert {at for at in range(len(before)) if before[at] != after[at]} <= covered
