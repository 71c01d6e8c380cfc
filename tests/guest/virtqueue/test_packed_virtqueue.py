"""The driver's half of a packed ring: the content that it writes, and its answer to a hostile device."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.virtqueue.virtqueue import QueueFullError, UsedBuffer
from protocol.errors import VirtqueueError
from protocol.packed_ring import PACKED_DESCRIPTOR, WRAP_COUNTER, used_bits
from scripts.check.model.ring_memory import PackedRingMemory

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000


def put_used(memory: PackedRingMemory, at: int, buffer_id: int, length: int = 0, *, wrap: bool = True) -> None:
    """Give ``buffer_id`` back in descriptor ``at``, as a device would."""
    ring = memory.device_view
    ring.halves[8 * at + 6], ring.words[4 * at + 2] = buffer_id, length
    ring.halves[8 * at + 7] = used_bits(wrap) | (WRITE if length else 0)


def test_request_is_a_list_with_its_id_in_every_descriptor_readable_before_writable() -> None:
    memory = PackedRingMemory(5)
    driver = memory.driver()
    assert driver.add([(0xA, 1)], []) == 0
    assert driver.add([(0xB, 2)], [(0xC, 3)]) == 1
    assert [memory.device_view.read_descriptor(index) for index in range(3)] == [
        (0xA, 1, 0, AVAIL),
        (0xB, 2, 1, AVAIL | NEXT),
        (0xC, 3, 1, AVAIL | WRITE),
    ]
    assert driver.outstanding == 2


def test_flags_of_the_first_descriptor_are_stored_last(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PackedRingMemory(4)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "guest.virtqueue.packed_virtqueue.order_accesses",
        lambda: seen.append([memory.device_view.halves[8 * index + 7] for index in range(3)]),
    )
    memory.driver().add([(1, 1), (2, 1), (3, 1)], [])
    assert seen == [[0, AVAIL | NEXT, AVAIL]]
    assert memory.device_view.halves[7] == AVAIL | NEXT


def test_list_over_the_end_has_the_bits_of_both_laps() -> None:
    memory = PackedRingMemory(3)
    driver = memory.driver()
    driver.add([(1, 1)] * 2, [])
    put_used(memory, 0, 0)
    assert driver.get_used() == UsedBuffer(0, 0)
    driver.add([(2, 1), (3, 1)], [])
    flags = [memory.device_view.halves[8 * index + 7] for index in (2, 0)]
    assert flags == [AVAIL | NEXT, USED]


def test_request_of_several_buffers_takes_one_descriptor_and_a_table() -> None:
    memory = PackedRingMemory(4, tables=1, capacity=3)
    assert memory.tables is not None
    memory.driver().add([(0xA, 1)], [(0xB, 2), (0xC, 3)])
    table = memory.tables.addresses[0]
    assert memory.device_view.read_descriptor(0) == (table, 48, 0, AVAIL | INDIRECT)
    entries = list(PACKED_DESCRIPTOR.iter_unpack(memory.read_guest(table, 48)))
    assert entries == [(0xA, 1, 0, 0), (0xB, 2, 0, WRITE), (0xC, 3, 0, WRITE)]


@pytest.mark.parametrize("count", [1, 4])
def test_single_buffer_and_more_than_a_table_holds_are_listed_directly(count: int) -> None:
    memory = PackedRingMemory(4, tables=1, capacity=3)
    memory.driver().add([(0xA, 1)] * count, [])
    flags = [memory.device_view.halves[8 * index + 7] for index in range(count)]
    assert flags == [AVAIL | NEXT] * (count - 1) + [AVAIL]


def test_table_is_used_again_once_its_request_is_given_back() -> None:
    memory = PackedRingMemory(8, tables=1, capacity=4)
    driver = memory.driver()
    for number in range(20):
        buffer_id = driver.add([(number, 1), (number, 2)], [])
        at, wrap = number % 8, (number // 8) % 2 == 0
        assert memory.device_view.halves[8 * at + 7] & INDIRECT
        put_used(memory, at, buffer_id, wrap=wrap)
        assert driver.get_used() == UsedBuffer(buffer_id, 0)


def test_full_ring_takes_nothing_and_stays_as_it_was() -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1)] * 3, [])
    before = bytes(memory.memory)
    with pytest.raises(QueueFullError, match="2 descriptors needed, 1 free"):
        driver.add([(2, 1)], [(3, 1)])
    assert bytes(memory.memory) == before
    assert driver.outstanding == 1
    assert driver.add([(2, 1)], []) == 1


def test_request_without_buffers_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="without buffers"):
        PackedRingMemory(4).driver().add([], [])


@pytest.mark.parametrize("buffer_id", [1, 4, 65535])
def test_id_that_the_device_does_not_have_is_refused(buffer_id: int) -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1)], [])
    put_used(memory, 0, buffer_id)
    with pytest.raises(VirtqueueError, match=f"gave back {buffer_id}, which is not in flight"):
        driver.get_used()
    assert driver.outstanding == 1


def test_id_given_back_twice_is_refused_the_second_time() -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    buffer_id = driver.add([(1, 1)], [])
    put_used(memory, 0, buffer_id)
    put_used(memory, 1, buffer_id)
    assert driver.get_used() == UsedBuffer(buffer_id, 0)
    with pytest.raises(VirtqueueError, match="which is not in flight"):
        driver.get_used()


def test_used_length_counts_only_if_the_device_says_that_it_wrote() -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    driver.add([], [(1, 100)])
    driver.add([], [(2, 100)])
    put_used(memory, 0, 0, 77)
    put_used(memory, 1, 1, 77)
    memory.device_view.halves[8 + 7] &= ~WRITE
    assert [driver.get_used(), driver.get_used()] == [UsedBuffer(0, 77), UsedBuffer(1, 0)]


def test_descriptors_overwritten_by_the_device_do_not_mislead_the_driver() -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    driver.add([(1, 1), (2, 1)], [])
    for index in range(4):
        memory.device_view.write_descriptor(index, 0, 0, 99)
    put_used(memory, 0, 0)
    assert driver.get_used() == UsedBuffer(0, 0)
    assert driver.get_used() is None
    driver.add([(3, 1)] * 4, [])


def test_batch_is_one_used_descriptor_for_all_up_to_its_last_request() -> None:
    memory = PackedRingMemory(6)
    driver = memory.driver(in_order=True)
    ids = [driver.add([(1, 1)], [(2, 50)]), driver.add([], [(3, 30)]), driver.add([], [(4, 20)] * 2)]
    put_used(memory, 0, ids[1], 9)
    assert driver.get_used() == UsedBuffer(ids[0], 50)  # not reported by itself: used completely
    assert driver.enable_interrupt()
    assert driver.get_used() == UsedBuffer(ids[1], 9)
    assert not driver.enable_interrupt()
    assert driver.get_used() is None
    put_used(memory, 3, ids[2], 5)  # after the three descriptors of the batch
    assert driver.get_used() == UsedBuffer(ids[2], 5)


@pytest.mark.parametrize(("word", "kick"), [(0, True), (1 << 16, False), (3 << 16, True), (2 << 16 | 9, True)])
def test_kick_without_the_event_index_is_spared_by_the_disable_flag_only(word: int, kick: bool) -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver()
    memory.device_view.device_event[0] = word
    driver.add([(1, 1)], [])
    assert driver.needs_kick() is kick
    assert not driver.needs_kick()


def test_device_is_kicked_when_its_event_was_passed() -> None:
    memory = PackedRingMemory(3)
    driver = memory.driver(event_idx=True)
    kicks = []
    for number in range(9):
        memory.device_view.device_event[0] = 2 << 16 | 1 | (WRAP_COUNTER if number < 6 else 0)
        buffer_id = driver.add([(1, 1)], [])
        kicks.append(driver.needs_kick())
        put_used(memory, number % 3, buffer_id, wrap=(number // 3) % 2 == 0)
        assert driver.get_used() is not None
    # Only in a lap that has the wrap counter of the event: in lap 1, not in lap 2, and not in lap 3, which has another.
    assert kicks == [False, True, False, False, False, False, False, False, False]


@pytest.mark.parametrize("event_idx", [False, True])
def test_used_event_is_the_next_used_descriptor_when_an_interrupt_is_asked_for(event_idx: bool) -> None:
    memory = PackedRingMemory(2)
    driver = memory.driver(event_idx=event_idx)
    words = []
    for number in range(3):
        buffer_id = driver.add([(1, 1)], [])
        assert not driver.enable_interrupt()
        words.append(memory.device_view.driver_event[0])
        put_used(memory, number % 2, buffer_id, wrap=number < 2)
        assert driver.enable_interrupt()
        assert driver.get_used() is not None
    flags = 2 << 16 if event_idx else 0
    assert words == [flags | WRAP_COUNTER, flags | WRAP_COUNTER | 1, flags]


@given(
    descriptors=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2**32 - 1), st.sampled_from([0, 2, AVAIL, USED, AVAIL | USED])),
        min_size=4,
        max_size=4,
    ),
    requests=st.integers(0, 3),
    in_order=st.booleans(),
)
@settings(max_examples=300)
def test_used_ring_of_any_content_ends_in_a_completion_or_a_refusal(
    descriptors: list[tuple[int, int, int]], requests: int, in_order: bool
) -> None:
    memory = PackedRingMemory(4)
    driver = memory.driver(in_order=in_order)
    outstanding = {driver.add([], [(number, 1)]) for number in range(requests)}
    for index, (buffer_id, length, flags) in enumerate(descriptors):
        memory.device_view.halves[8 * index + 6], memory.device_view.words[4 * index + 2] = buffer_id, length
        memory.device_view.halves[8 * index + 7] = flags
    with contextlib.suppress(VirtqueueError):
        while (used := driver.get_used()) is not None:
            outstanding.remove(used.head)
    assert driver.outstanding == len(outstanding)
