"""Profiles: in what the emulated guest follows one release of Linux or another.

Sources: Linux 6.1 and 7.2, ``mm/page_reporting.c``, ``mm/page_alloc.c`` and ``drivers/virtio/virtio_balloon.c``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from protocol.balloon_statistics import StatisticTag
from protocol.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One release of Linux, as far as a balloon device or the free lists can tell it from another."""

    name: str
    capacity_from_ring: bool
    """Whether a report has as many entries as the reporting ring, up to the reporter's own capacity. Otherwise the
    driver fails to probe where the ring is smaller than that (virtballoon_probe: -ENOSPC)."""
    indirect: bool
    """Whether RING_INDIRECT_DESC is negotiated; virtballoon_validate clears it in later releases."""
    statistics: tuple[StatisticTag, ...]
    """The statistics that the driver sends, in its order (update_balloon_stats)."""
    keeps_order: bool
    """Whether page_reporting_order, once set, stays through further registrations of a device."""
    claims_pageblocks: bool
    """How types take from each other: ``RMQUEUE_CLAIM`` and ``RMQUEUE_STEAL``, or steal_suitable_fallback."""

    def check_ring(self, entries: int, capacity: int) -> None:
        """Raise UsageError where the driver refuses a reporting ring of ``entries`` for reports of ``capacity``."""
        if entries < capacity and not self.capacity_from_ring:
            raise UsageError(
                f"Linux {self.name} takes no reporting queue of fewer entries than a report has: "
                f"{entries} are fewer than {capacity}"
            )


_EVENTS: Final = (StatisticTag.SWAP_IN, StatisticTag.SWAP_OUT)
_HUGETLB: Final = (StatisticTag.HTLB_PGALLOC, StatisticTag.HTLB_PGFAIL)
_MEMORY: Final = (StatisticTag.MEMFREE, StatisticTag.MEMTOT, StatisticTag.AVAIL, StatisticTag.CACHES)
_RECLAIM: Final = (
    StatisticTag.OOM_KILL,
    StatisticTag.ALLOC_STALL,
    StatisticTag.ASYNC_RECLAIM,
    StatisticTag.DIRECT_RECLAIM,
)

LINUX_6_1: Final = Profile(
    name="6.1",
    capacity_from_ring=False,
    indirect=True,
    statistics=_EVENTS + _HUGETLB + _MEMORY,
    keeps_order=False,
    claims_pageblocks=False,
)
LINUX_7_2: Final = Profile(
    name="7.2",
    capacity_from_ring=True,
    indirect=False,
    statistics=_EVENTS + _RECLAIM + _HUGETLB + _MEMORY,
    keeps_order=True,
    claims_pageblocks=True,
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({profile.name: profile for profile in (LINUX_6_1, LINUX_7_2)})
"""By the name that ``--profile`` takes."""
