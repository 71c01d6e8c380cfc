"""Chains counted from outside, on rings that the two halves of a virtqueue really use."""

from protocol.packed_ring import PackedRing, available_bits, used_bits
from protocol.split_ring import SplitRing
from protocol.virtio_ring import VIRTQ_DESC_F_NEXT
from scripts.check.faults.chain_count import PackedChainCount, SplitChainCount


def split_ring() -> SplitRing:
    return SplitRing(4, memoryview(bytearray(64)), memoryview(bytearray(16)), memoryview(bytearray(40)))


def test_indices_of_a_split_ring_are_counted_over_their_wrap() -> None:
    ring, count = split_ring(), SplitChainCount()
    ring.avail[1], ring.used[1] = 65535, 65534
    count.observe(ring)
    assert (count.available, count.used) == (1, 0), "one was in flight at the beginning"
    ring.avail[1], ring.used[1] = 2, 1
    count.observe(ring)
    assert (count.available, count.used) == (4, 3)


class Packed:
    """A packed ring of 4 whose driver and device write it as the specification says."""

    def __init__(self) -> None:
        event = memoryview(bytearray(4))
        self.ring = PackedRing(4, memoryview(bytearray(64)), event, memoryview(bytearray(4)))
        self.count = PackedChainCount()
        self._driver = self._device = 0

    def make_available(self, buffer_id: int, length: int) -> None:
        for number in range(length):
            index, lap = self._driver % 4, self._driver // 4
            self.ring.write_descriptor(index, 0x1000, 64, buffer_id)
            more = VIRTQ_DESC_F_NEXT if number < length - 1 else 0
            self.ring.halves[8 * index + 7] = available_bits(lap % 2 == 0) | more
            self._driver += 1

    def use(self, buffer_id: int, length: int) -> None:
        index, lap = self._device % 4, self._device // 4
        self.ring.write_descriptor(index, 0x1000, 0, buffer_id)
        self.ring.halves[8 * index + 7] = used_bits(lap % 2 == 0)
        self._device += length

    def counted(self) -> tuple[int, int]:
        self.count.observe(self.ring)
        return self.count.available, self.count.used


def test_chains_of_a_packed_ring_are_counted_over_its_laps() -> None:
    packed = Packed()
    assert packed.counted() == (0, 0)
    for chains, (buffer_id, length) in enumerate([(7, 3), (8, 2)] * 5):
        packed.make_available(buffer_id, length)
        assert packed.counted() == (chains + 1, chains)
        packed.use(buffer_id, length)
        assert packed.counted() == (chains + 1, chains + 1)


def test_two_packed_chains_are_used_out_of_order() -> None:
    packed = Packed()
    packed.make_available(1, 1)
    packed.make_available(2, 2)
    assert packed.counted() == (2, 0)
    packed.use(2, 2)
    assert packed.counted() == (2, 1)
    packed.use(1, 1)
    assert packed.counted() == (2, 2)


def test_chain_first_seen_used_is_counted_as_both() -> None:
    packed = Packed()
    for number in range(9):
        packed.make_available(3, 1)
        packed.use(3, 1)
        assert packed.counted() == (number + 1, number + 1)
