"""The options of the emulated guest, as its command line or a test gives them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from guest.linux_profile import LINUX_7_2, Profile
from guest.virtqueue.ring_memory import RingOptions
from guest.workloads.workload import Workload

ONE_ZONE: Final = "one"
X86_64_ZONES: Final = "x86-64"
"""Layouts of memory: all of it Normal, or DMA, DMA32 and Normal where a real machine has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmOptions:
    """The options of one machine. Sizes are bytes, times seconds; None leaves a reporter's own default."""

    socket_path: Path
    memory: int
    reporter: str
    buddyinfo: str | None = None
    """The free lists to begin with, as another machine's /proc/buddyinfo; None is everything free."""
    zones: str | None = None
    """ONE_ZONE or X86_64_ZONES; None is one zone, or those of x86-64 where ``buddyinfo`` has several."""
    pci_hole: str | int | None = None
    """The hole below 4 GiB: a name of ``x86.pci_hole.PCI_HOLES`` or bytes; None takes it from ``buddyinfo``."""
    kernelcore: int | None = None
    cma: int = 0
    cpus: int = 0
    shuffle: bool = False
    reporting_order: int | None = None
    reporting_delay: float | None = None
    reporting_capacity: int | None = None
    high_water_mark: int | None = None
    workloads: tuple[Workload, ...] = ()
    seed: int = 0
    profile: Profile = LINUX_7_2
    duration: float | None = None
    hold: bool = False
    views: tuple[str, ...] = ()
    """What to print at the end, by the names of ``guest.mm.views.vmstat.VIEWS``."""
    ledger: bool = False
    """Whether ``memory`` events say what holds the free memory that the host still backs."""
    memory_map: float | None = None
    """Seconds between two ``memory_map`` events; None emits none."""
    control: Path | None = None
    record: Path | None = None
    ring: RingOptions = field(default_factory=RingOptions)
    page_poison: int | None = None
    """The pattern of free pages, one byte four times; None leaves their content undefined."""
    draft: int = 0
    """Features of drafts that the driver accepts, of ``guest.balloon.initialised_pages.DRAFT_FEATURES``."""
    in_band: bool = False
    resume: bool = False
    """How kicks and interrupts travel, and whether a new back-end goes on with the rings of the last one."""
