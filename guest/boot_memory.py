"""The physical memory of an emulated guest as its options describe it: zones, the hole below 4 GiB, free lists."""

import itertools
from collections.abc import Mapping, Sequence

from guest.mm.mmzone import Zone, ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.rotation import Rotation
from guest.mm.views.buddyinfo import parse_buddyinfo, shape_memory
from guest.mm.x86.pci_hole import NO_HOLE, PCI_HOLES, find_pci_hole, pci_hole_of_size
from guest.mm.x86.zones import x86_64_zones
from guest.vmm_options import ONE_ZONE, X86_64_ZONES, VmmOptions
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE


def make_allocator(options: VmmOptions) -> PageAllocator:
    """Return the allocator of a machine with ``options``, everything free.

    Without ``options.zones`` the machine has one zone, or those of x86-64 where the buddyinfo has several. Without
    ``options.pci_hole`` it has the smallest hole with which the buddyinfo fits, or none.

    Raises:
        UsageError: options that contradict each other.
    """
    free_pages = _free_pages(options.buddyinfo)
    kind = options.zones or (X86_64_ZONES if len(free_pages) > 1 else ONE_ZONE)
    zones = None
    if kind == X86_64_ZONES:
        zones = _zones(options, free_pages)
    elif options.kernelcore is not None:
        raise UsageError(f"--kernelcore makes a Movable zone, which needs --zones {X86_64_ZONES}")
    elif options.pci_hole is not None:
        raise UsageError(f"--pci-hole needs --zones {X86_64_ZONES}")
    return PageAllocator(
        options.memory // PAGE_SIZE,
        zones=zones,
        nr_cpus=options.cpus,
        move_to_tail=options.reporter == Rotation.name,  # since Linux 5.10; the designs of 2019 have a head there
        claims_pageblocks=options.profile.claims_pageblocks,
        cma_pages=options.cma // PAGE_SIZE,
        shuffle_seed=options.seed if options.shuffle else None,
    )


def shape_free_lists(allocator: PageAllocator, buddyinfo: str) -> None:
    """Give the zones of ``allocator`` the free blocks of ``buddyinfo``, soon after boot.

    Raises:
        UsageError: the blocks do not fit; the message names the options that decide the zones.
    """
    try:
        shape_memory(allocator, buddyinfo)
    except UsageError as error:
        raise UsageError(f"--buddyinfo: {error}; --memory, --zones and --pci-hole decide the zones") from error


def memory_hole(zones: Sequence[Zone]) -> range:
    """Return the guest addresses of the hole between two of ``zones``, empty without a hole."""
    for below, above in itertools.pairwise(zones):
        if below.end_pfn < above.start_pfn:
            return range(below.end_pfn * PAGE_SIZE, above.start_pfn * PAGE_SIZE)
    return range(0)


def _free_pages(buddyinfo: str | None) -> dict[str, int]:
    # Free pages by zone, of those zones that have any.
    if buddyinfo is None:
        return {}
    zones = parse_buddyinfo(buddyinfo)
    pages = {name: sum(count << order for order, count in enumerate(counts)) for (_, name), counts in zones.items()}
    return {name: count for name, count in pages.items() if count}


def _zones(options: VmmOptions, free_pages: Mapping[str, int]) -> tuple[ZoneSpan, ...]:
    total_pages = options.memory // PAGE_SIZE
    core_pages = None if options.kernelcore is None else options.kernelcore // PAGE_SIZE
    if options.pci_hole is None:
        hole = find_pci_hole(total_pages, free_pages, kernelcore_pages=core_pages) or NO_HOLE
    elif isinstance(options.pci_hole, int):
        hole = pci_hole_of_size(options.pci_hole)
    else:
        hole = PCI_HOLES[options.pci_hole]
    return x86_64_zones(total_pages, kernelcore_pages=core_pages, lowmem_end_pfn=hole.lowmem_end_pfn(total_pages))
