"""guest/mm/x86/pci_hole.py: where the RAM of QEMU's machines is."""

import pytest

from guest.mm.x86.pci_hole import NO_HOLE, PCI_HOLES, find_pci_hole, pci_hole_of_size
from protocol.errors import UsageError
from protocol.units import GIB as GIB_BYTES
from protocol.units import MIB

GIB = 1 << 18


@pytest.mark.parametrize(
    ("machine", "total_mib", "lowmem_end_mib"),
    [
        ("none", 8192, 4096),
        ("q35", 2815, 4096),
        ("q35", 2816, 2048),
        ("q35", 6144, 2048),
        ("pc", 3583, 4096),
        ("pc", 3584, 3072),
        ("microvm", 3071, 4096),
        ("microvm", 4096, 3072),
    ],
)
def test_machines_split_their_ram_as_in_qemu(machine: str, total_mib: int, lowmem_end_mib: int) -> None:
    assert PCI_HOLES[machine].lowmem_end_pfn(total_mib << 8) == lowmem_end_mib << 8


def test_hole_of_any_size_ends_at_4_gib() -> None:
    hole = pci_hole_of_size(GIB_BYTES + MIB)
    assert hole.lowmem_end_pfn(8 * GIB) == 3 * GIB - 256
    assert hole.lowmem_end_pfn(2 * GIB) == 4 * GIB
    assert pci_hole_of_size(0) == NO_HOLE


@pytest.mark.parametrize("size", [1, 4097, 4 * GIB_BYTES, 4 * GIB_BYTES - 15 * MIB])
def test_hole_that_leaves_too_little_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"a PCI hole of {size} bytes is not whole pages from 0 to 4080M"):
        pci_hole_of_size(size)


@pytest.mark.parametrize(
    ("dma32", "normal", "machine"),
    [
        (3 * GIB, 2 * GIB - 1, "none"),
        (3 * GIB - 4096, 3 * GIB - 100, "microvm"),
        (2 * GIB - 5000, 4 * GIB - 5000, "q35"),
        (3 * GIB, 4 * GIB, None),
    ],
)
def test_smallest_hole_with_room_for_the_free_pages_is_found(dma32: int, normal: int, machine: str | None) -> None:
    found = find_pci_hole(6 * GIB, {"DMA": 3840, "DMA32": dma32, "Normal": normal})
    assert found == (None if machine is None else PCI_HOLES[machine])


def test_movable_zone_counts_with_its_kernel_core() -> None:
    free = {"DMA32": 2 * GIB - 5000, "Normal": GIB, "Movable": 3 * GIB - 1}
    assert find_pci_hole(6 * GIB, free, kernelcore_pages=3 * GIB) == PCI_HOLES["q35"]
    assert find_pci_hole(6 * GIB, free) is None
