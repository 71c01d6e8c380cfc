"""Orders and migratetypes of blocks (Linux ``include/linux/mmzone.h`` and ``pageblock-flags.h``).

Orders go from 0 to ``MAX_ORDER`` inclusive, as in Linux since 6.4; a block of order n is ``1 << n`` pages of 4 KiB.
"""

from enum import IntEnum
from typing import Final

MAX_ORDER: Final = 10
NR_PAGE_ORDERS: Final = MAX_ORDER + 1
MAX_ORDER_NR_PAGES: Final = 1 << MAX_ORDER
PAGEBLOCK_ORDER: Final = 9
"""Order of a pageblock where huge pages have 2 MiB. Without huge pages it is MAX_ORDER."""
NO_ORDER: Final = NR_PAGE_ORDERS
"""An order that no block has. "From this order on" with this value means "never"."""


class MigrateType(IntEnum):
    """``enum migratetype``, in the kernel's order."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    HIGHATOMIC = 3
    CMA = 4
    ISOLATE = 5


MIGRATE_TYPES: Final = len(MigrateType)
MIGRATE_PCPTYPES: Final = 3
"""The types below this one are ordinary: they have per-CPU lists, take from each other, and merge with each other."""
