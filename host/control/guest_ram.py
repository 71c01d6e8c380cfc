"""How much memory a guest has, and how large its balloon may be at most.

The memory table is not the guest's RAM: it may hold an NVDIMM, or memory of virtio-mem that is not plugged, and lack
what the firmware shadows. What the guest's driver says of its total memory (MEMTOT) bounds a balloon, and so does what
the operator has stated. A balloon never leaves a guest less than a reserve: a kernel that is asked for more, without
DEFLATE_ON_OOM, panics.
"""

from dataclasses import dataclass
from typing import Final

from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT

RESERVE_BYTES: Final = 64 << 20
"""Bytes that a balloon leaves a guest, unless the operator has stated another reserve. At most half of the memory is
kept from the balloon of a small guest."""

KERNEL_PART: Final = 8
"""A kernel keeps less than one part in so many of the memory (or :data:`RESERVE_BYTES`) out of MEMTOT for itself. A
table that exceeds MEMTOT by more holds memory that is not the guest's RAM."""


@dataclass(slots=True)
class GuestRam:
    """The memory of one guest, in bytes. ``stated`` is what the operator says it has, 0 if nothing.

    ``table`` is the sum of the memory table's regions, 0 before it has come. ``total`` is what the guest had at its
    last statistics without a balloon, None if it has given none.
    """

    stated: int = 0
    reserve: int = RESERVE_BYTES
    table: int = 0
    total: int | None = None

    @property
    def bytes(self) -> int:
        """The size of the guest, 0 while that is unknown."""
        if self.stated or self.total is None:
            return self.stated or self.table
        outside = self.table - self.total
        return self.total if outside > max(self.table // KERNEL_PART, RESERVE_BYTES) else self.table

    @property
    def pages(self) -> int:
        """The pages of 4096 bytes that the guest has, 0 while that is unknown."""
        return min(self._least >> PFN_SHIFT, NUM_PAGES_MAX)

    @property
    def most_pages(self) -> int:
        """The most pages of 4096 bytes that a balloon may have, 0 while the guest's size is unknown."""
        return min((self._least - min(self.reserve, self._least // 2)) >> PFN_SHIFT, NUM_PAGES_MAX)

    @property
    def _least(self) -> int:
        return min(self.bytes, self.bytes if self.total is None else self.total)
