"""guest/boot_memory.py: zones and free lists from options."""

from pathlib import Path

import pytest

from guest.boot_memory import make_allocator, memory_hole, shape_free_lists
from guest.mm.views.vmstat import buddyinfo
from guest.vmm_options import ONE_ZONE, X86_64_ZONES, VmmOptions
from protocol.errors import UsageError
from protocol.units import GIB, MIB

# An idle machine of 6 GiB, 2 GiB of them below 4 GiB.
Q35 = (
    "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
    "Node 0, zone    DMA32      4      5      3      4      3      3      3      3      4      2    478 \n"
    "Node 0, zone   Normal     37     60     81     54     30     21     16     10      7      5    969 \n"
)


def options(**values: object) -> VmmOptions:
    return VmmOptions(**{"socket_path": Path("s"), "memory": 6 * GIB, "reporter": "off", **values})  # type: ignore[arg-type]


def sizes(**values: object) -> dict[str, int]:
    """Return the MiB of each zone by name."""
    return {zone.name: zone.managed_pages >> 8 for zone in make_allocator(options(**values)).zones}


def test_zones_are_one_by_default_and_those_of_x86_64_where_asked_for() -> None:
    assert sizes() == sizes(zones=ONE_ZONE) == {"Normal": 6144}
    assert sizes(zones=X86_64_ZONES) == {"DMA": 16, "DMA32": 4080, "Normal": 2048}


def test_hole_is_that_of_the_option() -> None:
    assert sizes(zones=X86_64_ZONES, pci_hole="q35") == {"DMA": 16, "DMA32": 2032, "Normal": 4096}
    assert sizes(zones=X86_64_ZONES, pci_hole="pc") == {"DMA": 16, "DMA32": 3056, "Normal": 3072}
    assert sizes(zones=X86_64_ZONES, pci_hole=256 * MIB) == {"DMA": 16, "DMA32": 3824, "Normal": 2304}


def test_zones_and_hole_are_found_from_the_buddyinfo() -> None:
    allocator = make_allocator(options(buddyinfo=Q35))
    assert memory_hole(allocator.zones) == range(2 * GIB, 4 * GIB)
    shape_free_lists(allocator, Q35)
    assert buddyinfo(allocator) == Q35
    allocator.validate()
    assert memory_hole(make_allocator(options()).zones) == range(0)


@pytest.mark.parametrize("values", [{"pci_hole": "pc"}, {"pci_hole": "none"}, {"memory": 3 * GIB}, {"zones": ONE_ZONE}])
def test_buddyinfo_that_does_not_fit_names_the_options(values: dict[str, object]) -> None:
    allocator = make_allocator(options(buddyinfo=Q35, **values))
    message = r"--buddyinfo: .*zone (DMA|DMA32|Normal).*; --memory, --zones and --pci-hole decide the zones"
    with pytest.raises(UsageError, match=message):
        shape_free_lists(allocator, Q35)


@pytest.mark.parametrize("option", ["pci_hole", "kernelcore"])
def test_single_zone_has_neither_hole_nor_movable_zone(option: str) -> None:
    with pytest.raises(UsageError, match="needs --zones x86-64"):
        make_allocator(options(**{option: GIB}))
