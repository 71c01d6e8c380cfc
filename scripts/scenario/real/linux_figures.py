"""The memory of a real kernel in a run: from what its zones show, or from the balloon's statistics.

``balloon-linux --zones`` asks the guest once a second. A guest that is too short of memory to answer still fills the
statistics queue, which knows less: then most of what is held is ``unknown``.
"""

from dataclasses import dataclass
from typing import Final

from guest.ledger.ledger import Ledger
from guest.ledger.linux_ledger import LinuxZone, linux_ledger, statistics_ledger
from guest.mm.pageblock import MAX_ORDER
from protocol.virtio_balloon import BalloonFeature
from scripts.child_processes import Event
from scripts.scenario.run_record import LedgerEntry

ORDER: Final = MAX_ORDER
"""User Mode Linux has no huge pages, so a pageblock is a block of the largest order."""

STALE_SECONDS: Final = 2.0
"""Age from which what the zones showed gives way to newer statistics."""


@dataclass(slots=True, kw_only=True)
class LinuxFigures:
    """The last known figures of one guest, in bytes. ``ledger`` is None until the guest has told something."""

    memory_bytes: int
    balloon_bytes: int = 0
    allocated_bytes: int = 0
    free_bytes: int = 0
    page_cache_bytes: int = 0
    ledger: Ledger | None = None
    is_reporting: bool = True
    _zones_at: float = -STALE_SECONDS

    @property
    def reported_bytes(self) -> int:
        """Free bytes that the host does not back, of a kernel that reports: which of them were reported it does not
        show."""
        return 0 if self.ledger is None or not self.is_reporting else self.ledger.returned_bytes

    @property
    def entry(self) -> LedgerEntry | None:
        """The ledger as a run keeps it."""
        if self.ledger is None:
            return None
        causes = {str(cause): size for cause, size in self.ledger.held_bytes.items()}
        return LedgerEntry(causes=causes, page_cache_bytes=self.page_cache_bytes)

    def zones(self, event: Event) -> None:
        """Take an event ``zones`` of ``balloon-linux``."""
        self._zones_at = float(event["t"])
        zones = [
            LinuxZone(
                name=str(zone["name"]),
                free_pages=int(zone["free_pages"]),
                pcp_pages=int(zone["pcp_pages"]),
                low_watermark=int(zone["low_watermark"]),
                nr_free=tuple(zone["nr_free"]),
            )
            for zone in event["zones"]
        ]
        ledger = linux_ledger(
            zones,
            memory_bytes=self.memory_bytes,
            resident_bytes=int(event["resident_bytes"]),
            balloon_bytes=self.balloon_bytes,
            order=ORDER,
            is_reporting=self.is_reporting,
        )
        self._take(ledger, int(event["total_bytes"]), int(event["page_cache_bytes"]))

    def host_event(self, event: Event, resident_bytes: int) -> None:
        """Take an event of the daemon: the features, the size of the balloon, or statistics. ``resident_bytes`` is what
        the host backs now."""
        match event["event"]:
            case "features":
                self.is_reporting = bool(int(event["negotiated"]) >> BalloonFeature.PAGE_REPORTING & 1)
            case "balloon":
                self.balloon_bytes = int(event["actual_bytes"])
            case "statistics" if "memfree" in event and float(event["t"]) - self._zones_at >= STALE_SECONDS:
                ledger = statistics_ledger(
                    int(event["memfree"]),
                    memory_bytes=self.memory_bytes,
                    resident_bytes=resident_bytes,
                    balloon_bytes=self.balloon_bytes,
                    is_reporting=self.is_reporting,
                )
                self._take(ledger, int(event.get("memtot", self.memory_bytes)), int(event.get("caches", 0)))

    def _take(self, ledger: Ledger, total_bytes: int, page_cache_bytes: int) -> None:
        self.ledger = ledger
        self.free_bytes = ledger.free_bytes
        self.allocated_bytes = max(0, total_bytes - ledger.free_bytes)
        self.page_cache_bytes = page_cache_bytes
