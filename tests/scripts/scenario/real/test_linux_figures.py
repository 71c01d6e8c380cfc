"""What a real kernel and the daemon tell of its memory, and the ledger that is made of it."""

from typing import Any

from protocol.units import MIB
from protocol.virtio_balloon import BalloonFeature
from scripts.scenario.real.linux_figures import STALE_SECONDS, LinuxFigures

MEMORY = 256 * MIB
PAGES_OF_MIB = 256


def zones(t: float, resident_bytes: int) -> dict[str, Any]:
    """Return the event of a guest with 200 MiB free, of them 1 MiB on per-CPU lists and 7 MiB in small blocks."""
    zone = {
        "name": "Normal",
        "free_pages": 199 * PAGES_OF_MIB,
        "low_watermark": 600,
        "pcp_pages": PAGES_OF_MIB,
        "nr_free": [0] * 8 + [7, 0, 48],
    }
    return {
        "event": "zones",
        "t": t,
        "resident_bytes": resident_bytes,
        "total_bytes": 240 * MIB,
        "page_cache_bytes": 3 * MIB,
        "zones": [zone],
    }


def test_what_zones_show_is_booked() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    figures.zones(zones(1.0, 66 * MIB))
    assert (figures.free_bytes, figures.allocated_bytes) == (200 * MIB, 40 * MIB)
    entry = figures.entry
    assert entry is not None
    assert {cause: size for cause, size in entry.causes.items() if size} == {
        "pcp": MIB,
        "below_order": 7 * MIB,
        "unknown": 2 * MIB,
    }
    assert (entry.not_returned_bytes, figures.reported_bytes, entry.page_cache_bytes) == (10 * MIB, 190 * MIB, 3 * MIB)


def test_holes_of_a_balloon_are_not_returned_memory() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    figures.host_event({"event": "balloon", "t": 0.5, "actual_bytes": 40 * MIB, "target_bytes": 40 * MIB})
    figures.zones(zones(1.0, 66 * MIB))
    assert figures.entry is not None
    assert figures.entry.not_returned_bytes == 50 * MIB


def test_what_is_held_follows_the_host_and_never_exceeds_what_it_backs() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    figures.zones(zones(1.0, 66 * MIB))
    figures.resident_bytes = 60 * MIB  # reported since
    assert figures.entry is not None
    assert (figures.entry.not_returned_bytes, figures.reported_bytes) == (4 * MIB, 196 * MIB)
    figures.resident_bytes = 76 * MIB
    assert figures.entry is not None
    assert (figures.entry.not_returned_bytes, figures.entry.causes["unknown"]) == (20 * MIB, 12 * MIB)
    # The balloon has grown since the zones were shown, by what they have as free.
    figures.resident_bytes = 40 * MIB
    figures.host_event({"event": "balloon", "t": 1.5, "actual_bytes": 200 * MIB, "target_bytes": 200 * MIB})
    assert figures.entry is not None
    assert figures.entry.not_returned_bytes == 40 * MIB


def test_kernel_that_does_not_report_is_inhibited() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    figures.host_event({"event": "features", "t": 0.5, "negotiated": 1 << BalloonFeature.STATS_VQ})
    figures.zones(zones(1.0, MEMORY - MIB))
    assert figures.reported_bytes == 0
    assert figures.entry is not None
    assert figures.entry.causes["unknown"] == 0
    assert figures.entry.causes["inhibited"] == 191 * MIB


def test_statistics_are_taken_only_where_the_zones_are_old() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    statistics = {"event": "statistics", "memfree": 100 * MIB, "memtot": 240 * MIB, "caches": 9 * MIB}
    figures.resident_bytes = 200 * MIB
    figures.host_event({**statistics, "t": 0.5})
    assert (figures.free_bytes, figures.allocated_bytes, figures.page_cache_bytes) == (100 * MIB, 140 * MIB, 9 * MIB)
    assert figures.entry is not None
    assert figures.entry.causes["unknown"] == 44 * MIB
    figures.zones(zones(1.0, 66 * MIB))
    figures.host_event({**statistics, "t": 1.5})
    assert figures.free_bytes == 200 * MIB
    figures.host_event({**statistics, "t": 1.0 + STALE_SECONDS})
    assert figures.free_bytes == 100 * MIB


def test_guest_that_has_told_nothing_has_no_ledger() -> None:
    figures = LinuxFigures(memory_bytes=MEMORY)
    figures.host_event({"event": "statistics", "t": 0.5})
    assert (figures.entry, figures.reported_bytes) == (None, 0)
