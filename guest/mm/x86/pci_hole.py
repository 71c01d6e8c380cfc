"""The hole below 4 GiB that an x86 machine keeps for PCI and its own devices, and so where its RAM is.

A machine with little RAM has all of it below the hole. With more, a fixed part is below and the rest begins at 4 GiB.
Facts from QEMU: hw/i386/pc_q35.c (``pc_q35_init``), hw/i386/pc_piix.c (``pc_init1``), hw/i386/microvm.c
(``microvm_memory_init``), for machine types since 2.0, which keep the parts aligned to 1 GiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from guest.mm.mmzone import PAGE_SHIFT
from guest.mm.x86.zones import DMA32_END_PFN, DMA_END_PFN, x86_64_zones
from protocol.errors import UsageError
from protocol.units import MIB

_GIB_PAGES: Final = 1 << 30 >> PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class PciHole:
    """RAM of at least ``threshold_pages`` is split, and then has ``lowmem_pages`` below the hole. Pages of 4 KiB."""

    threshold_pages: int
    lowmem_pages: int

    def lowmem_end_pfn(self, total_pages: int) -> int:
        """Return the page frame number at which the hole begins, 4 GiB where RAM of ``total_pages`` is not split."""
        return self.lowmem_pages if total_pages >= self.threshold_pages else DMA32_END_PFN


NO_HOLE: Final = PciHole(DMA32_END_PFN, DMA32_END_PFN)
PCI_HOLES: Final[Mapping[str, PciHole]] = {
    "none": NO_HOLE,
    "microvm": PciHole(3 * _GIB_PAGES, 3 * _GIB_PAGES),
    "pc": PciHole(_GIB_PAGES * 7 // 2, 3 * _GIB_PAGES),
    "q35": PciHole(_GIB_PAGES * 11 // 4, 2 * _GIB_PAGES),
}
"""The holes of QEMU's machines by name."""


def pci_hole_of_size(size: int) -> PciHole:
    """Return a hole of ``size`` bytes that ends at 4 GiB.

    Raises:
        UsageError: not whole pages, or more than 4 GiB without the 16 MiB of the zone DMA.
    """
    pages, rest = divmod(size, 1 << PAGE_SHIFT)
    if rest or not 0 <= pages <= DMA32_END_PFN - DMA_END_PFN:
        most = DMA32_END_PFN - DMA_END_PFN << PAGE_SHIFT
        raise UsageError(f"a PCI hole of {size} bytes is not whole pages from 0 to {most // MIB}M")
    return PciHole(DMA32_END_PFN - pages, DMA32_END_PFN - pages)


def find_pci_hole(
    total_pages: int, free_pages: Mapping[str, int], *, kernelcore_pages: int | None = None
) -> PciHole | None:
    """Return the smallest hole of :data:`PCI_HOLES` with which each zone has room for its free pages; None without one.

    ``free_pages`` are 4 KiB pages by the name of the zone, as a machine of ``total_pages`` shows them. Free pages bound
    the size of a zone from below: the result is exact for an idle machine, and may be too small for a busy one.
    """
    for hole in PCI_HOLES.values():
        spans = x86_64_zones(
            total_pages, kernelcore_pages=kernelcore_pages, lowmem_end_pfn=hole.lowmem_end_pfn(total_pages)
        )
        sizes = {span.name: span.end_pfn - span.start_pfn for span in spans}
        if all(pages <= sizes.get(name, 0) for name, pages in free_pages.items()):
            return hole
    return None
