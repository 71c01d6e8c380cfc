"""The guest's side of it: it has nothing to report, or what it has is not enough for one report.

Source of the sizes: Linux, mm/page_reporting.c, ``page_reporting_process_zone``. A zone is left alone while its free
pages do not exceed the low watermark by one whole report: ``PAGE_REPORTING_CAPACITY << order``, which is 32 blocks. The
order is that of a page block: 2 or 4 MiB with pages of 4 KiB, 32 MiB with 16 KiB, 512 MiB with 64 KiB.
"""

from collections.abc import Iterator
from typing import Final

from host.doctor.facts import VmFacts
from host.doctor.finding import Cause, Finding
from protocol.units import GIB, MIB, format_size

CAPACITY: Final = 32
"""Blocks of one report."""

SMALL_BLOCK: Final = 2 * MIB
"""The smallest block of a guest with pages of 4 KiB."""

SMALL_REPORT: Final = 128 * MIB
"""The most that one report of a guest with pages of 4 KiB takes."""

LARGE_REPORT: Final = GIB
"""One report of a guest with pages of 16 KiB."""

HUGE_REPORT: Final = 16 * GIB
"""One report of a guest with pages of 64 KiB."""

PATIENCE: Final = 10.0
"""Seconds within which a guest with enough free memory has reported."""

_ORDER: Final = (
    "Boot the guest with page_reporting.page_reporting_order=5 (Linux 5.14 or newer), or give it more memory."
)
_KICK: Final = "Free some memory in the guest: it reports 2 s after that; if not, see its dmesg for virtio_balloon."


def find_shortage(facts: VmFacts) -> Iterator[Finding]:
    """Yield why a queue that runs has brought no report."""
    running = facts.reporting.running_for
    if facts.reports or not facts.driver_ready or running is None or running < PATIENCE:
        return
    free, total = facts.statistics.get("memfree"), facts.statistics.get("memtot", facts.guest_memory)
    if not facts.statistics_are_sound:
        free = None
    if free is not None and free < LARGE_REPORT:
        if free < CAPACITY * SMALL_BLOCK and _is_in_use(facts, total):
            return  # a note says where it is
        small = free < SMALL_REPORT
        yield Finding(
            Cause.ORDER_TOO_LARGE,
            f"The guest has {format_size(free)} free, less than one report may take: 32 blocks, which are "
            + ("64 to 128 MiB with pages of 4 KiB." if small else "1 GiB with pages of 16 KiB (128 MiB with 4 KiB)."),
            _ORDER if small else f"Pages of 16 KiB: {_ORDER} Pages of 4 KiB: {_KICK}",
        )
        return
    shown = "" if free is None else f", with {format_size(free)} free"
    huge = free is not None and free < HUGE_REPORT
    yield Finding(
        Cause.NEVER_KICKED,
        f"The reporting queue has run for {running:.0f} s without a report{shown}.",
        f"{_KICK} Pages of 64 KiB, where a report takes 16 GiB: {_ORDER}" if huge else _KICK,
    )


def find_notes(facts: VmFacts) -> Iterator[Finding]:
    """Yield where the memory of a machine is that works, if the host holds much of it."""
    values = facts.statistics
    total, free = values.get("memtot", 0), values.get("memfree", 0)
    if not total or not facts.statistics_are_sound or free > total // 4:
        return
    caches = values.get("caches", 0)
    if "avail" in values:  # the files of a tmpfs count as page cache, and are not given up
        caches = min(caches, max(values["avail"] - free, 0))
    in_use = total - min(values.get("avail", free + caches), total)
    if caches > total // 4:
        yield Finding(
            Cause.PAGE_CACHE,
            f"{format_size(caches)} of the guest's {format_size(total)} hold its page cache, which is not free memory.",
            "A balloon makes the guest give it up: balloonctl set VM SIZE, with more than the "
            f"{format_size(in_use)} that its programs use; balloonctl reclaim takes free memory alone.",
        )
    elif values.get("avail", free + caches) < total // 4:
        yield Finding(
            Cause.GUEST_BUSY,
            f"The guest uses its memory: {format_size(free)} of {format_size(total)} are free.",
            "Nothing has to be mended; memory comes back when the guest frees some.",
        )


def _is_in_use(facts: VmFacts, total: int) -> bool:
    values = facts.statistics
    return total >= CAPACITY * SMALL_BLOCK * 4 and (
        values.get("caches", 0) > total // 4 or values.get("avail", values["memfree"]) < total // 4
    )
