"""The driver's half of a split ring: the content that it writes, and its answer to a hostile device."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.virtqueue.virtqueue import QueueFullError, UsedBuffer
from protocol.errors import VirtqueueError
from protocol.split_ring import DESCRIPTOR, Descriptor
from protocol.virtio_ring import needs_event
from scripts.check.model.ring_memory import BASE, RingMemory

NEXT, WRITE, INDIRECT = 1, 2, 4


def put_used(memory: RingMemory, head: int, length: int = 0) -> None:
    """Give ``head`` back, as a device would."""
    ring = memory.device_view
    slot = ring.used[1] % ring.size
    ring.used_elements[1 + 2 * slot], ring.used_elements[2 + 2 * slot] = head, length
    ring.used[1] = (ring.used[1] + 1) & 0xFFFF


def test_request_is_a_chain_of_descriptors_readable_before_writable() -> None:
    memory = RingMemory(4)
    head = memory.driver().add([(0xA, 1), (0xB, 2)], [(0xC, 3)])
    ring = memory.device_view
    assert [ring.read_descriptor(index) for index in range(3)] == [
        (0xA, 1, NEXT, 1),
        (0xB, 2, NEXT, 2),
        (0xC, 3, WRITE, 0),
    ]
    assert (head, ring.avail[0], ring.avail[1], ring.avail[2]) == (0, 0, 1, 0)


def test_request_of_several_buffers_takes_one_descriptor_and_a_table() -> None:
    memory = RingMemory(4, tables=1, capacity=3)
    assert memory.tables is not None
    memory.driver().add([(0xA, 1)], [(0xB, 2), (0xC, 3)])
    table = memory.tables.addresses[0]
    assert memory.device_view.read_descriptor(0) == (table, 48, INDIRECT, 0)
    entries = list(DESCRIPTOR.iter_unpack(memory.read_guest(table, 48)))
    assert entries == [(0xA, 1, NEXT, 1), (0xB, 2, NEXT | WRITE, 2), (0xC, 3, WRITE, 0)]


@pytest.mark.parametrize("count", [1, 4])
def test_single_buffer_and_more_than_a_table_holds_are_chained_directly(count: int) -> None:
    memory = RingMemory(4, tables=1, capacity=3)
    memory.driver().add([(0xA, 1)] * count, [])
    flags = [memory.device_view.read_descriptor(index)[2] for index in range(count)]
    assert flags == [NEXT] * (count - 1) + [0]


def test_request_without_a_free_table_is_chained_directly() -> None:
    memory = RingMemory(8, tables=1, capacity=4)
    driver = memory.driver()
    driver.add([(0xA, 1), (0xB, 1)], [])
    driver.add([(0xC, 1), (0xD, 1)], [])
    assert memory.device_view.read_descriptor(0)[2] == INDIRECT
    assert memory.device_view.read_descriptor(1) == (0xC, 1, NEXT, 2)


def test_table_is_used_again_once_its_request_is_given_back() -> None:
    memory = RingMemory(8, tables=1, capacity=4)
    driver = memory.driver()
    for number in range(20):
        head = driver.add([(number, 1), (number, 2)], [])
        assert memory.device_view.read_descriptor(head)[2] == INDIRECT
        put_used(memory, head)
        assert driver.get_used() == UsedBuffer(head, 0)


def test_full_ring_takes_nothing_and_stays_as_it_was() -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1)] * 3, [])
    before = bytes(memory.memory)
    with pytest.raises(QueueFullError, match="2 descriptors needed, 1 free"):
        driver.add([(2, 1)], [(3, 1)])
    assert bytes(memory.memory) == before
    assert driver.outstanding == 1
    assert driver.add([(2, 1)], []) == 3


def test_full_ring_does_not_use_up_a_table() -> None:
    memory = RingMemory(1, tables=1, capacity=2)
    driver = memory.driver()
    head = driver.add([(1, 1)], [])
    with pytest.raises(QueueFullError):
        driver.add([(1, 1), (2, 1)], [])
    put_used(memory, head)
    assert driver.get_used() == UsedBuffer(head, 0)
    driver.add([(1, 1), (2, 1)], [])
    assert memory.device_view.read_descriptor(0)[2] == INDIRECT


def test_request_without_buffers_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="without buffers"):
        RingMemory(4).driver().add([], [])


@pytest.mark.parametrize("ahead", [5, 6, 32768, 65535])
def test_used_index_further_ahead_than_the_ring_is_refused(ahead: int) -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1)], [])
    memory.device_view.used[1] = ahead
    with pytest.raises(VirtqueueError, match=f"used index is {ahead} ahead in a ring of 4"):
        driver.get_used()


@pytest.mark.parametrize("head", [1, 4, 2**32 - 1])
def test_head_that_the_device_does_not_have_is_refused(head: int) -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1)], [])
    put_used(memory, head)
    with pytest.raises(VirtqueueError, match=f"gave back {head}, which is not in flight"):
        driver.get_used()
    assert driver.outstanding == 1


def test_head_given_back_twice_is_refused_the_second_time() -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    head = driver.add([(1, 1)], [])
    put_used(memory, head)
    put_used(memory, head)
    assert driver.get_used() == UsedBuffer(head, 0)
    with pytest.raises(VirtqueueError, match="which is not in flight"):
        driver.get_used()


def test_descriptor_in_the_middle_of_a_chain_is_no_head() -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1), (2, 1)], [])
    put_used(memory, 1)
    with pytest.raises(VirtqueueError, match="gave back 1"):
        driver.get_used()


def test_descriptor_table_overwritten_by_the_device_does_not_mislead_the_driver() -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    head = driver.add([(1, 1), (2, 1)], [])
    for index in range(4):
        memory.device_view.write_descriptor(index, Descriptor(0, 0, NEXT, 99))
    put_used(memory, head, 77)
    assert driver.get_used() == UsedBuffer(head, 77)
    driver.add([(3, 1)] * 4, [])


def test_notify_flag_replaces_avail_event_without_the_event_index() -> None:
    memory = RingMemory(4)
    driver = memory.driver()
    memory.device_view.used[memory.device_view.avail_event_at] = 500
    driver.add([(1, 1)], [])
    assert driver.needs_kick()
    assert not driver.needs_kick()
    memory.device_view.used[0] = 1
    driver.add([(2, 1)], [])
    assert not driver.needs_kick()


def test_flag_is_ignored_with_the_event_index() -> None:
    memory = RingMemory(4)
    driver = memory.driver(event_idx=True)
    memory.device_view.used[0] = 1
    driver.add([(1, 1)], [])
    assert driver.needs_kick()


@given(start=st.integers(0, 65535), steps=st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 6)), max_size=20))
def test_device_is_kicked_exactly_when_its_event_was_passed(start: int, steps: list[tuple[int, int]]) -> None:
    memory = RingMemory(256)
    driver = memory.driver(event_idx=True, index=start)
    index = start
    for count, distance in steps:
        event = (index + distance) & 0xFFFF
        memory.device_view.used[memory.device_view.avail_event_at] = event
        for _ in range(count):
            driver.add([(1, 1)], [])
        new = (index + count) & 0xFFFF
        assert driver.needs_kick() is needs_event(event, new, index)
        index = new


def test_used_event_is_the_next_used_entry_when_an_interrupt_is_asked_for() -> None:
    memory = RingMemory(4)
    driver = memory.driver(event_idx=True)
    head = driver.add([(1, 1)], [])
    assert not driver.enable_interrupt()
    put_used(memory, head)
    assert driver.enable_interrupt()
    assert driver.get_used() is not None
    assert not driver.enable_interrupt()
    assert memory.device_view.avail[memory.device_view.used_event_at] == 1
    assert memory.device_view.avail[0] == 0


def test_table_lies_where_it_was_set_aside() -> None:
    memory = RingMemory(4, tables=2, capacity=2, fill=0xEE)
    assert memory.tables is not None
    driver = memory.driver()
    driver.add([(1, 1), (2, 1)], [])
    used = memory.tables.addresses[1]
    assert memory.device_view.read_descriptor(0)[0] == used
    assert memory.read_guest(memory.tables.addresses[0], 32) == b"\xee" * 32
    assert used > BASE


def test_direct_descriptors_and_then_a_table_where_that_is_asked_for() -> None:
    memory = RingMemory(4, tables=1, capacity=2)
    assert memory.tables is not None
    table = memory.tables.addresses[0]
    memory.driver(mixed=True).add([(0xA, 1)], [(0xB, 2), (0xC, 3)])
    ring = memory.device_view
    assert [ring.read_descriptor(index) for index in range(2)] == [(0xA, 1, NEXT, 1), (table, 32, INDIRECT, 0)]
    entries = list(DESCRIPTOR.iter_unpack(memory.read_guest(table, 32)))
    assert entries == [(0xB, 2, NEXT | WRITE, 1), (0xC, 3, WRITE, 0)]


def test_descriptors_in_order_are_taken_in_ring_order() -> None:
    memory = RingMemory(4)
    driver = memory.driver(in_order=True)
    assert [driver.add([(1, 1)], []), driver.add([(2, 1)] * 2, [])] == [0, 1]
    put_used(memory, 0)
    assert driver.get_used() == UsedBuffer(0, 0)
    assert driver.add([(3, 1), (4, 1)], []) == 3
    assert memory.device_view.read_descriptor(3) == (
        3,
        1,
        NEXT,
        0,
    )  # virtio 1.2, 2.7.5.2: 0 after the last
    put_used(memory, 1)
    assert driver.get_used() == UsedBuffer(1, 0)
    assert driver.add([(5, 1)], []) == 1


def test_batch_is_one_used_element_for_all_up_to_its_last_request() -> None:
    memory = RingMemory(8)
    driver = memory.driver(in_order=True)
    heads = [driver.add([(1, 1)], [(2, 50)]), driver.add([], [(3, 30)]), driver.add([], [(4, 20)])]
    ring = memory.device_view
    ring.used_elements[1], ring.used_elements[2] = heads[1], 9
    ring.used[1] = 2
    assert driver.get_used() == UsedBuffer(heads[0], 50)  # not reported by itself: used completely
    assert driver.enable_interrupt()
    assert driver.get_used() == UsedBuffer(heads[1], 9)
    assert driver.get_used() is None
    put_used(memory, heads[2], 5)
    assert driver.get_used() == UsedBuffer(heads[2], 5)


def test_batch_that_reaches_further_than_the_used_index_is_refused() -> None:
    memory = RingMemory(8)
    driver = memory.driver(in_order=True)
    driver.add([(1, 1)], [])
    put_used(memory, driver.add([(2, 1)], []))
    with pytest.raises(VirtqueueError, match="gave back 1, which is not among the next 1"):
        driver.get_used()
    assert driver.outstanding == 2


@given(
    elements=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**32 - 1)), min_size=4, max_size=4),
    ahead=st.one_of(st.integers(0, 5), st.just(65535)),
    requests=st.integers(0, 3),
    in_order=st.booleans(),
)
def test_used_ring_of_any_content_ends_in_a_completion_or_a_refusal(
    elements: list[tuple[int, int]], ahead: int, requests: int, in_order: bool
) -> None:
    memory = RingMemory(4)
    driver = memory.driver(in_order=in_order)
    outstanding = {driver.add([], [(number, 1)]) for number in range(requests)}
    for slot, (head, length) in enumerate(elements):
        memory.device_view.used_elements[1 + 2 * slot], memory.device_view.used_elements[2 + 2 * slot] = head, length
    memory.device_view.used[1] = ahead
    with contextlib.suppress(VirtqueueError):
        while (used := driver.get_used()) is not None:
            outstanding.remove(used.head)
    assert driver.outstanding == len(outstanding)
