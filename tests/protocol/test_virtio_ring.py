"""What both ring formats have in common: numbers, sizes, index arithmetic, fences."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import BalloonError, VirtqueueError
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.split_ring import VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY
from protocol.virtio_ring import (
    AVAIL_RING_ALIGN,
    DESCRIPTOR_SIZE,
    DESCRIPTOR_TABLE_ALIGN,
    QUEUE_SIZE_MAX,
    USED_RING_ALIGN,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    check_queue_size,
    needs_event,
    refuse_big_endian,
    ring_delta,
)

U16 = st.integers(0, 2**16 - 1)


@pytest.mark.parametrize(
    ("name", "ours", "text"),
    [
        ("VIRTQ_DESC_F_NEXT", VIRTQ_DESC_F_NEXT, 1),
        ("VIRTQ_DESC_F_WRITE", VIRTQ_DESC_F_WRITE, 2),
        ("VIRTQ_DESC_F_INDIRECT", VIRTQ_DESC_F_INDIRECT, 4),
        ("VIRTQ_AVAIL_F_NO_INTERRUPT", VIRTQ_AVAIL_F_NO_INTERRUPT, 1),
        ("VIRTQ_USED_F_NO_NOTIFY", VIRTQ_USED_F_NO_NOTIFY, 1),
        ("size of a descriptor", DESCRIPTOR_SIZE, 16),
        ("largest queue", QUEUE_SIZE_MAX, 32768),
        ("alignment of the descriptor table", DESCRIPTOR_TABLE_ALIGN, 16),
        ("alignment of the available ring", AVAIL_RING_ALIGN, 2),
        ("alignment of the used ring", USED_RING_ALIGN, 4),
    ],
)
def test_number_is_the_one_of_the_text(name: str, ours: int, text: int) -> None:
    assert ours == text, name


@pytest.mark.parametrize("size", [1 << exponent for exponent in range(16)])
def test_queue_size_is_any_power_of_two_up_to_32768(size: int) -> None:
    check_queue_size(size)


@pytest.mark.parametrize("size", [-1, 0, 3, 6, 255, 257, 32767, 32769, 65536, 2**32 - 1])
def test_queue_size_of_any_other_value_is_refused(size: int) -> None:
    with pytest.raises(VirtqueueError, match=f"queue size {size} "):
        check_queue_size(size)


@pytest.mark.parametrize(
    ("new", "old", "ahead"), [(0, 0, 0), (1, 0, 1), (0, 65535, 1), (5, 65530, 11), (0, 1, 65535), (32768, 0, 32768)]
)
def test_index_is_ahead_of_another_modulo_65536(new: int, old: int, ahead: int) -> None:
    assert ring_delta(new, old) == ahead


def stepped_over(event: int, new: int, old: int) -> bool:
    """The definition by brute force: from ``old`` to ``new`` one by one, is entry ``event`` among them?"""
    index = old
    while index != new:
        if index == event:
            return True
        index = (index + 1) % 65536
    return False


@given(old=U16, steps=st.integers(0, 300), distance=st.integers(-310, 310))
@example(old=65535, steps=1, distance=0)
@example(old=65530, steps=10, distance=9)
@example(old=65530, steps=10, distance=10)
@example(old=0, steps=5, distance=-1)
@settings(max_examples=500)
def test_event_is_due_exactly_when_its_entry_was_stepped_over(old: int, steps: int, distance: int) -> None:
    event, new = (old + distance) % 65536, (old + steps) % 65536
    assert needs_event(event, new, old) is stepped_over(event, new, old)


@given(event=U16, new=U16, old=U16)
@settings(max_examples=40)
def test_event_anywhere_on_the_circle_is_due_exactly_when_it_was_stepped_over(event: int, new: int, old: int) -> None:
    assert needs_event(event, new, old) is stepped_over(event, new, old)


@pytest.mark.parametrize("fence", [full_fence, order_accesses])
def test_fence_may_be_passed_any_number_of_times(fence: Callable[[], None]) -> None:
    for _ in range(3):
        fence()


def test_big_endian_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_big_endian()
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(BalloonError, match="little-endian"):
        refuse_big_endian()
