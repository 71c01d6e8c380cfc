"""guest/page_poison.py: what free pages hold, in memory and for the machine that allocates them."""

from collections.abc import Iterator

import pytest

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.page_poison import PagePoison
from guest.ram import GuestRam

PAGES = 4096
PAGE = 4096


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(PAGES * PAGE)
    yield ram
    ram.close()


@pytest.mark.parametrize("byte", [0, 0xAA])
def test_pages_are_filled_and_nothing_beside_them(byte: int, ram: GuestRam) -> None:
    ram.write(0, b"\x55" * (PAGES * PAGE))
    PagePoison(ram.view, byte).fill(3, 1500)
    assert bytes(ram.view(3 * PAGE, 1500 * PAGE)) == bytes([byte]) * (1500 * PAGE)
    assert bytes(ram.view(2 * PAGE, PAGE)) == bytes(ram.view(1503 * PAGE, PAGE)) == b"\x55" * PAGE


@pytest.mark.parametrize("byte", [0, 0xAA])
def test_pages_that_were_used_hold_the_pattern_again(byte: int, ram: GuestRam) -> None:
    poison = PagePoison(ram.view, byte)
    poison.fill(0, 16)
    ram.fill(4, 8, 99)
    assert poison.count_spoilt(0, 16) == 8
    poison.restore(4, 8)
    assert poison.count_spoilt(0, 16) == 0
    assert bytes(ram.view(0, 16 * PAGE)) == bytes([byte]) * (16 * PAGE)


@pytest.mark.parametrize("at", [0, PAGE - 1])
def test_page_is_spoilt_at_either_end(at: int, ram: GuestRam) -> None:
    poison = PagePoison(ram.view, 0xAA)
    poison.fill(0, 16)
    ram.write(5 * PAGE + at, b"\0")
    assert poison.count_spoilt(0, 16) == 1
    assert poison.count_spoilt(0, 5) == poison.count_spoilt(6, 10) == 0


class Scene:
    """A machine whose free pages hold 0xAA."""

    def __init__(self, ram: GuestRam) -> None:
        self.poison = PagePoison(ram.view, 0xAA)
        self.poison.fill(0, PAGES)
        self.corrupted: list[tuple[int, int, int]] = []
        self.machine = Machine(
            PageAllocator(PAGES),
            ram,
            lambda _: None,
            lambda pfn, order, pages: self.corrupted.append((pfn, order, pages)),
            poison=self.poison,
        )


def test_freed_page_holds_the_pattern(ram: GuestRam) -> None:
    scene = Scene(ram)
    for order in (0, 3, 9):
        block = scene.machine.allocate(order)
        assert block is not None
        assert scene.machine.migrate(block.pfn, block.pfn ^ 1024, order)
        assert scene.machine.migrate(block.pfn, block.pfn ^ 1024, order)
        scene.machine.free(block)
    assert scene.poison.count_spoilt(0, PAGES) == 0
    assert scene.machine.corrupted_pages == 0


def test_free_page_that_was_discarded_is_found_when_it_is_allocated(ram: GuestRam) -> None:
    scene = Scene(ram)
    block = scene.machine.allocate(3)
    assert block is not None
    scene.machine.free(block)
    ram.write((block.pfn + 1) * PAGE, bytes(2 * PAGE))
    again = scene.machine.allocate(3)
    assert again is not None
    assert scene.corrupted == [(again.pfn, 3, 2)]
    assert scene.machine.corrupted_pages == 2
