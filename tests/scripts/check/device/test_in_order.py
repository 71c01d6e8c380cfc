"""Which used entries of a ring are right with IN_ORDER."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from protocol.packed_ring import AVAIL_USED
from protocol.ring_formats import RingLayout
from protocol.virtio import FeatureBit, feature_mask
from scripts.check.device.cases.in_order import UNWRITTEN, used_buffers
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import DATA_AT, MemoryFile
from scripts.check.verdict import Failed

SIZE = 16


@pytest.fixture
def memory() -> Iterator[MemoryFile]:
    with closing(MemoryFile(DATA_AT)) as made:
        yield made


def open_queue(memory: MemoryFile, *, packed: bool) -> DriverQueue:
    return DriverQueue(
        memory,
        0,
        0,
        None,
        RingLayout(SIZE, packed),
        feature_mask(FeatureBit.VERSION_1, FeatureBit.IN_ORDER),
        send_kick=lambda: None,
        take_interrupt=lambda: False,
    )


def buffers_back(memory: MemoryFile, entries: Sequence[tuple[int, int]], *, used: int, packed: bool) -> int:
    """Return what :func:`used_buffers` makes of 8 buffers and used ``entries`` (place, number of the buffer)."""
    with closing(open_queue(memory, packed=packed)) as queue:
        heads = [queue.driver.add((), [(DATA_AT + 4096 * number, 4096)]) for number in range(8)]
        if packed:
            for place, number in entries:
                queue.packed.halves[8 * place + 6] = heads[number]
                queue.packed.halves[8 * place + 7] = AVAIL_USED
        else:
            elements = queue.split.used_elements
            for place in range(SIZE):
                elements[1 + 2 * place] = UNWRITTEN
            for place, number in entries:
                elements[1 + 2 * place] = heads[number]
            queue.split.used[1] = used
        return used_buffers(queue, heads)


BOTH = pytest.mark.parametrize("packed", [False, True])


@BOTH
@pytest.mark.parametrize(
    ("entries", "done"),
    [
        ([], 0),
        ([(0, 0), (1, 1), (2, 2)], 3),
        ([(0, 3)], 4),
        ([(0, 0), (1, 4), (5, 7)], 8),
    ],
)
def test_one_by_one_and_batches_are_in_order(
    memory: MemoryFile, entries: list[tuple[int, int]], done: int, packed: bool
) -> None:
    assert buffers_back(memory, entries, used=done, packed=packed) == done


@BOTH
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(0, 1), (1, 0)], "entry 0 gives back buffer 1, and entry 1 then buffer 0"),
        ([(0, 0), (1, 2), (2, 1)], "entry 1 gives back buffer 2, and entry 2 then buffer 1"),
        ([(0, 0), (1, 0)], "entry 1 gives back buffer 0, after a later one"),
    ],
)
def test_another_order_is_found(memory: MemoryFile, entries: list[tuple[int, int]], words: str, packed: bool) -> None:
    with pytest.raises(Failed, match=words) as failed:
        buffers_back(memory, entries, used=len(entries), packed=packed)
    assert failed.value.clauses == ("G-23",)


def test_batch_that_the_index_does_not_count_is_found(memory: MemoryFile) -> None:
    with pytest.raises(Failed, match="gives back buffer 3 while the used index is 1"):
        buffers_back(memory, [(0, 3)], used=1, packed=False)


def test_head_of_no_buffer_is_found(memory: MemoryFile) -> None:
    with closing(open_queue(memory, packed=False)) as queue:
        queue.split.used_elements[1] = 77
        queue.split.used[1] = 1
        with pytest.raises(Failed, match="head 77, which is no buffer's"):
            used_buffers(queue, [0, 1])
