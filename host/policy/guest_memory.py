"""What the statistics of a guest say about its memory, where they say it."""

from host.policy.bounds import size_of
from host.policy.observation import VmView


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
