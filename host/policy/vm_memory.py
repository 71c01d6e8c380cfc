"""A virtual machine's memory in numbers that policies share: what its balloon may hold at most, what its guest has and
says about it. Every policy keeps to the bound; a decision beyond it is refused."""

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


def available_bytes(vm: VmView) -> int | None:
    """Return the bytes that the guest could give to a new program, as it says: AVAIL (MemAvailable), else what is free
    and what its page cache holds; None if it says neither. Never more than the guest has."""
    if vm.available_bytes is not None:
        return min(vm.available_bytes, size_of(vm))
    if vm.free_bytes is None:
        return None
    return min(vm.free_bytes + (vm.cache_bytes or 0), size_of(vm))


def free_bytes(vm: VmView) -> int | None:
    """Return the guest's free bytes (MEMFREE), at most what it has; None if it does not say."""
    return None if vm.free_bytes is None else min(vm.free_bytes, size_of(vm))


def used_bytes(vm: VmView) -> int | None:
    """Return the bytes in use, page cache included: what the guest has beside its balloon less what is free."""
    free = free_bytes(vm)
    return None if free is None else size_of(vm) - free


def unreturned_bytes(vm: VmView) -> int | None:
    """Return an estimate of the bytes that are free in the guest and still backed by the host; None if either is
    unknown."""
    used = used_bytes(vm)
    if used is None or vm.host_backed_bytes is None:
        return None
    return max(vm.host_backed_bytes - used, 0)
