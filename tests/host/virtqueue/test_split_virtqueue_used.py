"""The device's half of a split ring gives chains back: used elements, interrupts, order, and who else hears of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.split_ring import Descriptor
from protocol.virtio_ring import needs_event
from tests.host.virtqueue.hostile_split_ring import Hostile

# -- giving back ----------------------------------------------------------------------------------------------------


def test_used_element_is_the_head_and_the_length() -> None:
    ring = Hostile(4, next_avail=65535)
    ring.device.add_used(3, 0x1234)
    ring.device.add_used(1, 0)
    assert list(ring.ring.used_elements[1 + 2 * 3 : 3 + 2 * 3]) == [3, 0x1234]
    assert list(ring.ring.used_elements[1:3]) == [1, 0]
    assert ring.ring.used[1] == 1


def test_used_index_goes_on_from_the_ring_not_from_the_base() -> None:
    ring = Hostile(4)
    ring.ring.used[1] = 7
    device = ring.memory.device(base=9)
    device.add_used(0, 0)
    assert ring.ring.used[1] == 8
    assert ring.ring.used_elements[1 + 2 * (7 % 4)] == 0


def test_upper_half_of_the_base_is_ignored() -> None:
    assert Hostile().memory.device(base=0x1_0003).next_avail == 3


@pytest.mark.parametrize("event_idx", [False, True])
def test_flags_of_the_used_ring_stay_zero(event_idx: bool) -> None:
    ring = Hostile(event_idx=event_idx).describe(Descriptor(0, 1, 0, 0)).offer(0)
    ring.device.add_used(ring.pop().head, 0)
    ring.device.enable_notification()
    assert ring.ring.used[0] == 0
    assert ring.ring.used[ring.ring.avail_event_at] == (1 if event_idx else 0)


def test_interrupt_flag_and_not_used_event_counts_without_the_event_index() -> None:
    ring = Hostile()
    ring.ring.avail[ring.ring.used_event_at] = 500
    ring.device.add_used(0, 0)
    assert ring.device.needs_notification()
    ring.ring.avail[0] = 1
    ring.device.add_used(0, 0)
    assert not ring.device.needs_notification()
    ring.ring.avail[0] = 0
    assert not ring.device.needs_notification()  # nothing new since


def test_flag_is_ignored_with_the_event_index() -> None:
    ring = Hostile(event_idx=True)
    ring.ring.avail[0] = 1
    ring.device.add_used(0, 0)
    assert ring.device.needs_notification()


@given(start=st.integers(0, 65535), steps=st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 6)), max_size=30))
def test_driver_is_told_exactly_when_its_event_was_passed(start: int, steps: list[tuple[int, int]]) -> None:
    ring = Hostile(event_idx=True, next_avail=start)
    index = start
    for count, distance in steps:
        event = (index + distance) & 0xFFFF
        ring.ring.avail[ring.ring.used_event_at] = event
        for _ in range(count):
            ring.device.add_used(0, 0)
        new = (index + count) & 0xFFFF
        assert ring.device.needs_notification() is needs_event(event, new, index)
        index = new


def test_driver_that_polled_for_65535_completions_is_told_of_the_next_one() -> None:
    ring = Hostile(event_idx=True)
    for done in range(65535):
        ring.ring.avail[ring.ring.used_event_at] = (done + 100) & 0xFFFF  # polling: "do not tell me yet"
        ring.device.add_used(0, 0)
        assert not ring.device.needs_notification()
    ring.ring.avail[ring.ring.used_event_at] = 65535  # going to sleep: "tell me of the next one"
    ring.device.add_used(0, 0)
    assert ring.device.needs_notification()


# -- putting back, in order, and who else hears of it -----------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("start", [0, 65535])
def test_chain_that_is_put_back_is_taken_again(start: int, in_order: bool) -> None:
    ring = Hostile(4, next_avail=start).describe(Descriptor(0xA, 1, 0, 0)).offer(0)
    device = ring.memory.device(base=start, in_order=in_order)
    chain = device.pop()
    assert chain is not None
    device.unpop(chain)
    assert device.base == start
    assert device.pop() == chain
    device.add_used(chain.head, 0)
    assert ring.ring.used[1] == (start + 1) & 0xFFFF


def test_completion_before_its_turn_is_held_back_in_order() -> None:
    ring = Hostile(4).describe(*[Descriptor(0xA, 1, 0, 0)] * 3).offer(2, 0, 1)
    device = ring.memory.device(in_order=True)
    assert [chain.head for chain in (device.pop(), device.pop(), device.pop()) if chain is not None] == [2, 0, 1]
    device.add_used(0, 5)
    assert not device.needs_notification()
    assert ring.ring.used[1] == 0
    device.add_used(2, 6)
    assert device.needs_notification()
    assert list(ring.ring.used_elements[1:5]) == [2, 6, 0, 5]
    device.add_used(1, 7)
    assert ring.ring.used[1] == 3


def test_buffer_held_in_order_goes_back_before_those_that_came_later() -> None:
    """As statistics are held: the earlier one goes back when the next has come, and the last is put back at the end."""
    ring = Hostile(4).describe(*[Descriptor(0xA, 1, 0, 0)] * 3).offer(2, 0)
    device = ring.memory.device(in_order=True)
    first, second = device.pop(), device.pop()
    assert first is not None
    assert second is not None
    device.add_used(first.head, 0)
    device.unpop(second)
    assert (list(ring.ring.used_elements[1:3]), ring.ring.used[1], device.base) == ([2, 0], 1, 1)
    again = device.pop()
    assert again == second
    device.add_used(second.head, 0)
    assert ring.ring.used[1] == 2


def test_memory_that_became_something_else_is_not_taken_for_the_ring() -> None:
    ring = Hostile(4).describe(Descriptor(0xA, 1, 0, 0)).offer(0)
    ring.device.add_used(ring.pop().head, 0)
    token = ring.device.token
    assert ring.memory.device(base=ring.device.base).is_as_left(token)
    ring.memory.memory[:] = bytes(len(ring.memory.memory))
    assert not ring.memory.device(base=ring.device.base).is_as_left(token)


def test_stores_into_the_ring_are_all_told() -> None:
    ring = Hostile(4, event_idx=True).describe(Descriptor(0xA, 1, 0, 0)).offer(0)
    told: list[tuple[int, int, int]] = []
    ring.device.on_write = lambda part, offset, length: told.append((part, offset, length))
    before = bytes(ring.memory.memory)
    ring.device.add_used(ring.pop().head, 3)
    ring.device.enable_notification()
    assert told == [(2, 4, 8), (2, 2, 2), (2, 36, 2)]
    covered = {ring.memory.layout.offsets[part] + at + byte for part, at, length in told for byte in range(length)}
    after = bytes(ring.memory.memory)
    assert {at for at in range(len(before)) if before[at] != after[at]} <= covered
