"""Faults in the order in which buffers and descriptors are taken, and in where a ring goes on."""

from typing import Any

from host.virtqueue.packed_virtqueue import PackedDeviceVirtqueue as Packed
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue as Split
from protocol.packed_ring import AVAIL_USED, FRESH_BASE
from scripts.check.broken.fault import fault, replaced


@fault("in-order-swapped", caught_by=("in-order/split", "in-order/packed"))
def _() -> None:
    """With IN_ORDER a buffer is given back after the next one, where there is one."""

    def is_more(self: Any) -> bool:
        ring = self._ring
        if isinstance(self, Split):
            return bool(ring.avail[1] != self.next_avail)
        return bool(ring.halves[8 * self._next_avail + 7] & AVAIL_USED == self._avail_bits)

    for virtqueue in (Split, Packed):

        def make(original: Any) -> Any:
            held: dict[Any, tuple[int, int]] = {}

            def write_used(self: Any, head: int, length: int) -> None:
                if self not in held and self._order is not None and is_more(self):
                    held[self] = head, length
                    return
                original(self, head, length)
                if self in held:
                    original(self, *held.pop(self))

            return write_used

        replaced(virtqueue, "_write_used", make)


@fault("packed-list-backwards", caught_by=("inflate-over-two-buffers/packed",))
def _() -> None:
    """The descriptors of a list are taken in the other order, the last first."""

    def make(original: Any) -> Any:
        def pop(self: Any, *rest: Any) -> Any:
            chain = original(self, *rest)
            if chain is not None:
                chain.readable.reverse()
            return chain

        return pop

    replaced(Packed, "pop", make)


@fault("buffers-in-hand-lost", caught_by=("reconnected-in-mid-report/split",))
def _() -> None:
    """A ring that starts goes on after the buffers that it finds available, whatever its base is."""

    def make(original: Any) -> Any:
        def init(self: Any, ring: Any, base: int, *rest: Any, **names: Any) -> None:
            original(self, ring, ring.avail[1], *rest, **names)

        return init

    replaced(Split, "__init__", make)


@fault("packed-base-zero-is-fresh", caught_by=("packed-base-zero",))
def _() -> None:
    """Base 0 of a packed ring is taken for that of a fresh one, whatever is in the ring."""

    def make(original: Any) -> Any:
        def init(self: Any, ring: Any, base: int, *rest: Any, **names: Any) -> None:
            original(self, ring, base or FRESH_BASE, *rest, **names)

        return init

    replaced(Packed, "__init__", make)


@fault("packed-base-zero-is-literal", caught_by=("packed-base-zero",))
def _() -> None:
    """Base 0 of a fresh packed ring is taken for the beginning of the second lap."""

    def make(original: Any) -> Any:
        def init(self: Any, ring: Any, base: int, *rest: Any, **names: Any) -> None:
            flags = ring.halves[7]
            if base == 0:
                ring.halves[7] = flags | AVAIL_USED  # as if the first lap had used it
            original(self, ring, base, *rest, **names)
            if base == 0:
                ring.halves[7] = flags

        return init

    replaced(Packed, "__init__", make)
