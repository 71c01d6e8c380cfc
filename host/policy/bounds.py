"""What a balloon may hold at most: every policy keeps to it, and a decision beyond it is refused."""

from typing import Final

from host.policy.observation import VmView
from protocol.memory import PAGE_SIZE
from protocol.units import MIB

RESERVE_BYTES: Final = 64 * MIB
"""Bytes that a balloon leaves a virtual machine, or half of its memory if that is less. The daemon has the same
reserve unless ``--guest-reserve`` says otherwise."""


def most_balloon(vm: VmView, reserve: int = RESERVE_BYTES) -> int:
    """Return the most bytes that the balloon of ``vm`` may be asked to hold, whole pages."""
    return whole_pages(vm.memory_bytes - min(reserve, vm.memory_bytes // 2))


def bounded(vm: VmView, size: float) -> int:
    """Return ``size`` bytes of balloon within what ``vm`` may be asked for: from 0 to :func:`most_balloon`."""
    return whole_pages(min(max(size, 0), most_balloon(vm)))


def balloon_for(vm: VmView, left: float) -> int:
    """Return the balloon that leaves ``vm`` the size of ``left`` bytes, as far as it may be asked for."""
    return bounded(vm, vm.memory_bytes - left)


def size_of(vm: VmView) -> int:
    """Return the bytes that ``vm`` has beside its balloon, at least a page."""
    return max(vm.memory_bytes - vm.balloon_bytes, PAGE_SIZE)


def whole_pages(size: float) -> int:
    """Return the bytes of the whole pages in ``size``, at least 0."""
    return max(int(size), 0) // PAGE_SIZE * PAGE_SIZE
