"""The memory of a real kernel in a run: from what its zones show, or from the balloon's statistics.

What the guest has free is as old as what it told last; what of it the host backs is computed anew for each sample.

``balloon-linux --zones`` asks the guest once a second. A guest that is too short of memory to answer still fills the
statistics queue, which knows less: then most of what is held is ``unknown``.
"""

from dataclasses import dataclass
from typing import Final

from guest.ledger.ledger import Ledger
from guest.ledger.linux_ledger import LinuxZone, linux_ledger, statistics_ledger
from guest.mm.pageblock import MAX_ORDER
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonFeature
from scripts.child_processes import Event
from scripts.scenario.run_record import LedgerEntry

ORDER: Final = MAX_ORDER
"""User Mode Linux has no huge pages, so a pageblock is a block of the largest order."""

STALE_SECONDS: Final = 2.0
"""Age from which what the zones showed gives way to newer statistics."""


@dataclass(slots=True, kw_only=True)
class LinuxFigures:
    """The last known figures of one guest, in bytes. ``resident_bytes`` is what the host backs now."""

    memory_bytes: int
    resident_bytes: int = 0
    balloon_bytes: int = 0
    allocated_bytes: int = 0
    free_bytes: int = 0
    page_cache_bytes: int = 0
    is_reporting: bool = True
    _zones_at: float = -STALE_SECONDS
    _zones: list[LinuxZone] | None = None
    """None where the last that was told are statistics."""
    _has_told: bool = False

    @property
    def ledger(self) -> Ledger | None:
        """What is free and what of it the host backs, None until the guest has told something."""
        if not self._has_told:
            return None
        # The balloon may have grown since by pages that were free: what is held is no more than the host backs.
        balloon_bytes = min(self.balloon_bytes, max(0, self.memory_bytes - self.free_bytes))
        if self._zones is None:
            return statistics_ledger(
                self.free_bytes,
                memory_bytes=self.memory_bytes,
                resident_bytes=self.resident_bytes,
                balloon_bytes=balloon_bytes,
                is_reporting=self.is_reporting,
            )
        return linux_ledger(
            self._zones,
            memory_bytes=self.memory_bytes,
            resident_bytes=self.resident_bytes,
            balloon_bytes=balloon_bytes,
            order=ORDER,
            is_reporting=self.is_reporting,
        )

    @property
    def reported_bytes(self) -> int:
        """Free bytes that the host does not back, of a kernel that reports: which of them were reported it does not
        show."""
        ledger = self.ledger if self.is_reporting else None
        return 0 if ledger is None else ledger.returned_bytes

    @property
    def entry(self) -> LedgerEntry | None:
        """The ledger as a run keeps it."""
        ledger = self.ledger
        if ledger is None:
            return None
        causes = {str(cause): size for cause, size in ledger.held_bytes.items()}
        return LedgerEntry(causes=causes, page_cache_bytes=self.page_cache_bytes)

    def zones(self, event: Event) -> None:
        """Take an event ``zones`` of ``balloon-linux``."""
        self._zones_at = float(event["t"])
        self.resident_bytes = int(event["resident_bytes"])
        self._zones = [
            LinuxZone(
                name=str(zone["name"]),
                free_pages=int(zone["free_pages"]),
                pcp_pages=int(zone["pcp_pages"]),
                low_watermark=int(zone["low_watermark"]),
                nr_free=tuple(zone["nr_free"]),
            )
            for zone in event["zones"]
        ]
        free_bytes = sum(zone.free_pages + zone.pcp_pages for zone in self._zones) * PAGE_SIZE
        self._take(free_bytes, int(event["total_bytes"]), int(event["page_cache_bytes"]))

    def host_event(self, event: Event) -> None:
        """Take an event of the daemon: the features, the size of the balloon, or statistics."""
        match event["event"]:
            case "features":
                self.is_reporting = bool(int(event["negotiated"]) >> BalloonFeature.PAGE_REPORTING & 1)
            case "balloon":
                self.balloon_bytes = int(event["actual_bytes"])
            case "statistics" if "memfree" in event and float(event["t"]) - self._zones_at >= STALE_SECONDS:
                self._zones = None
                total_bytes = int(event.get("memtot", self.memory_bytes))
                self._take(int(event["memfree"]), total_bytes, int(event.get("caches", 0)))

    def _take(self, free_bytes: int, total_bytes: int, page_cache_bytes: int) -> None:
        self._has_told = True
        self.free_bytes = free_bytes
        self.allocated_bytes = max(0, total_bytes - free_bytes)
        self.page_cache_bytes = page_cache_bytes
