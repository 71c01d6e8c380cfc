"""What a policy sees at one moment: the host's budget, and each virtual machine by its own statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class VmView:
    """One virtual machine. Sizes are bytes; None is what its guest or its host does not tell.

    ``memory_bytes`` is the guest's RAM without a balloon, ``balloon_bytes`` what its balloon holds by the driver's
    word, ``target_bytes`` what the balloon was last asked to hold. ``free_bytes``, ``available_bytes``, ``cache_bytes``
    and ``total_bytes`` are the statistics MEMFREE, AVAIL, CACHES and MEMTOT (virtio 1.2, 5.5.6.3), ``statistics_age``
    their age in seconds. ``host_backed_bytes`` is what the host holds for it.

    The others are totals since it began: bytes that the host had to provide again after they were given back, the
    guest's major and minor page faults and its swap traffic in bytes (statistics too), and the seconds that its
    processes waited for memory.
    """

    name: str
    memory_bytes: int
    balloon_bytes: int = 0
    target_bytes: int = 0
    total_bytes: int | None = None
    free_bytes: int | None = None
    available_bytes: int | None = None
    cache_bytes: int | None = None
    statistics_age: float | None = None
    host_backed_bytes: int | None = None
    refaulted_bytes: int = 0
    major_faults: int | None = None
    minor_faults: int | None = None
    swapped_in_bytes: int | None = None
    swapped_out_bytes: int | None = None
    stall_seconds: float = 0.0
    age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """The host: the bytes that its virtual machines may have together, what they have, and the pressure.

    ``pressure`` is the share of the last ten seconds in which some task waited for memory, in percent, as in the line
    ``some avg10`` of /proc/pressure/memory or a cgroup's memory.pressure; None where the kernel does not tell it.
    """

    budget_bytes: int
    used_bytes: int
    pressure: float | None = None

    @property
    def free_bytes(self) -> int:
        """What is left of the budget, at least 0."""
        return max(0, self.budget_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a policy decides by. ``now`` is in seconds, ``vms`` by their names in the order in which they came."""

    now: float
    host: HostView
    vms: Mapping[str, VmView] = field(default_factory=dict)
