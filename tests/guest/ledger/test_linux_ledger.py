"""The ledger of a real kernel, from texts of /proc as the emulated guest writes them, and from this machine's own."""

import random
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.ledger.ledger import take_ledger
from guest.ledger.linux_ledger import LinuxZone, linux_ledger, parse_zones, statistics_ledger
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.reporters import make_reporter
from guest.mm.views.vmstat import VIEWS
from guest.mm.x86.zones import x86_64_zones
from guest.simulation import HostMemory
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from tests.guest.mm.reporting.reporting import do_nothing

MIB: Final = 1 << 20
PAGES: Final = 1 << 18
SIZES = st.integers(0, 1 << 40)


def view(allocator: PageAllocator) -> list[LinuxZone]:
    return parse_zones(VIEWS["zoneinfo"](allocator), VIEWS["buddyinfo"](allocator))


@pytest.mark.parametrize("claims", [False, True])
def test_zones_are_those_of_the_kernel(claims: bool) -> None:
    allocator = PageAllocator(PAGES, zones=x86_64_zones(PAGES), nr_cpus=2, claims_pageblocks=claims)
    allocator.free_pages(allocator.alloc_pages(0) or 0, 0)
    zones = view(allocator)
    assert [zone.name for zone in zones] == [zone.name for zone in allocator.zones]
    for zone, seen in zip(allocator.zones, zones, strict=True):
        assert seen.free_pages == zone.free_pages
        assert seen.low_watermark == zone.watermarks.low
        assert list(seen.nr_free) == zone.nr_free
        assert seen.pages_in_blocks(range(11)) == zone.free_pages
    assert sum(zone.pcp_pages for zone in zones) == allocator.nr_pcp_pages() > 0


def test_what_a_kernel_shows_is_booked_as_its_own_ledger_would() -> None:
    """Rotation as in Linux: small blocks, per-CPU pages and a zone that is too short; delay and budget are unknown."""
    allocator = PageAllocator(PAGES, zones=x86_64_zones(PAGES), nr_cpus=1)
    host = HostMemory(allocator.end_pfn)
    host.fill(0, allocator.end_pfn, 0)
    reporter = make_reporter("rotation", allocator)
    reporter.register(32, 0.0, do_nothing)
    pfns = [allocator.alloc_pages(0) or 0 for _ in range(3000)]
    for pfn in random.Random(1).sample(pfns, 1500):
        allocator.free_pages(pfn, 0)
    own = take_ledger(allocator, reporter, host.residency).held_bytes
    ledger = linux_ledger(view(allocator), memory_bytes=PAGES * PAGE_SIZE, resident_bytes=PAGES * PAGE_SIZE)
    held = ledger.held_bytes
    for cause in (Cause.PCP, Cause.BELOW_ORDER, Cause.WATERMARK):
        assert held[cause] == own[cause] > 0
    assert held[Cause.UNKNOWN] == own[Cause.DELAY] > 0
    assert ledger.not_returned_bytes == sum(own.values())


def test_holes_are_free_memory_that_was_returned_unless_the_balloon_has_them() -> None:
    zone = LinuxZone(name="Normal", free_pages=50 << 8, pcp_pages=256, low_watermark=10, nr_free=(0,) * 10 + (12,))
    ledger = linux_ledger([zone], memory_bytes=128 * MIB, resident_bytes=97 * MIB, capacity=16)
    assert (ledger.free_bytes, ledger.returned_bytes) == (51 * MIB, 31 * MIB)
    assert {cause: size for cause, size in ledger.held_bytes.items() if size} == {
        Cause.PCP: MIB,
        Cause.UNKNOWN: 19 * MIB,
    }
    ledger = linux_ledger([zone], memory_bytes=128 * MIB, resident_bytes=97 * MIB, balloon_bytes=20 * MIB)
    assert ledger.returned_bytes == 11 * MIB


@pytest.mark.parametrize("is_reporting", [True, False])
def test_kernel_without_a_reporter_returns_nothing(is_reporting: bool) -> None:
    zone = LinuxZone(name="Normal", free_pages=2048, pcp_pages=0, low_watermark=9, nr_free=(1024,) + (0,) * 9 + (1,))
    sizes = {"memory_bytes": 64 * MIB, "resident_bytes": 64 * MIB}
    held = linux_ledger([zone], **sizes, is_reporting=is_reporting).held_bytes
    assert held[Cause.BELOW_ORDER] == 4 * MIB
    assert held[Cause.WATERMARK if is_reporting else Cause.INHIBITED] == 4 * MIB
    held = statistics_ledger(8 * MIB, **sizes, is_reporting=is_reporting).held_bytes
    assert held[Cause.UNKNOWN if is_reporting else Cause.INHIBITED] == 8 * MIB


@given(
    zones=st.lists(
        st.builds(
            LinuxZone,
            name=st.just("Normal"),
            free_pages=st.integers(0, 1 << 20),
            pcp_pages=st.integers(0, 1 << 12),
            low_watermark=st.integers(0, 1 << 14),
            nr_free=st.tuples(*[st.integers(0, 1000)] * 11),
        ),
        min_size=1,
        max_size=4,
    ),
    memory=SIZES,
    resident=SIZES,
    balloon=SIZES,
    order=st.integers(0, 10),
    is_reporting=st.booleans(),
)
def test_sum_is_exact_even_where_the_texts_contradict_each_other(
    zones: list[LinuxZone], memory: int, resident: int, balloon: int, order: int, is_reporting: bool
) -> None:
    sizes = {"memory_bytes": memory, "resident_bytes": resident, "balloon_bytes": balloon}
    free = sum(zone.free_pages + zone.pcp_pages for zone in zones) * PAGE_SIZE
    holes = min(free, max(0, memory - resident - balloon))
    for ledger in (
        linux_ledger(zones, order=order, is_reporting=is_reporting, **sizes),
        statistics_ledger(free, is_reporting=is_reporting, **sizes),
    ):
        assert tuple(ledger.held_bytes) == tuple(Cause)
        assert min(ledger.held_bytes.values()) >= 0
        assert sum(ledger.held_bytes.values()) == ledger.not_returned_bytes == free - holes
        assert ledger.returned_bytes == holes


def test_texts_of_this_machine_are_understood() -> None:
    zones = parse_zones(Path("/proc/zoneinfo").read_text("ascii"), Path("/proc/buddyinfo").read_text("ascii"))
    assert zones
    assert all(zone.low_watermark > 0 for zone in zones if zone.free_pages)


@pytest.mark.parametrize(
    ("zoneinfo", "buddyinfo", "complaint"),
    [
        ("", "Node 0, zone Normal" + " 0" * 11, "zoneinfo: no zone with memory"),
        ("Node 0, zone   Normal\n  pages free     7\n", "Node 0, zone Normal" + " 0" * 11, "no low watermark"),
        (
            "Node 0, zone   Normal\n  pages free     7\n        low      9\n",
            "Node 1, zone Normal" + " 0" * 11,
            "buddyinfo has no node 0, zone Normal, which zoneinfo has",
        ),
        ("", "", "buddyinfo: no zone"),
    ],
)
def test_other_texts_are_refused(zoneinfo: str, buddyinfo: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_zones(zoneinfo, buddyinfo)
