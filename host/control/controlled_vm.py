"""What the control socket needs of one virtual machine. :class:`host.control.vm_control.VmControl` provides it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from host.control.guest_statistics import GuestStatistics
from host.control.reclaim_progress import ReclaimMethod, ReclaimResult
from host.vhost_user.device_setup import DeviceSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    """What is known of one virtual machine.

    ``memory_bytes`` is the sum of its memory regions, ``guest_bytes`` how much of that is taken for its RAM.
    ``num_pages`` is the size that its balloon should have, ``target_pages`` the size that was asked for, which its
    memory may bound, and ``actual`` the size that the driver says it has, in 4096-byte pages. ``features`` are the
    negotiated feature bits. ``driver_ready`` says that a driver is at work, and ``setup`` how it has set the device up.
    ``name`` is for display, ``age`` the session's in seconds. The counters are sums since it began, sizes are
    bytes, ``refused`` counts ranges by reason. ``last_report`` is the age of the last report in seconds, None without.
    """

    pid: int
    name: str
    age: float
    memory_bytes: int
    guest_bytes: int
    num_pages: int
    target_pages: int
    actual: int
    features: int
    driver_ready: bool
    setup: DeviceSetup
    reports: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    last_report: float | None = None


class ControlledVm(Protocol):
    """The controls. Each method raises :class:`protocol.errors.BalloonError` with one line if it cannot be done."""

    def info(self) -> VmInfo:
        """Return what is known without asking the guest."""

    async def backed_bytes(self) -> int | None:
        """Return how much memory the host holds for the guest's memory, None if its files do not answer."""

    def set_num_pages(self, num_pages: int) -> None:
        """Ask for a balloon of ``num_pages`` 4096-byte pages."""

    def state_memory(self, guest_bytes: int) -> None:
        """Set the guest's memory as stated by the operator; 0 unsets it."""

    @property
    def last_statistics(self) -> GuestStatistics | None:
        """The statistics that arrived last, if any have."""

    async def statistics(self) -> GuestStatistics:
        """Ask the guest for fresh statistics."""

    @property
    def statistics_interval(self) -> float:
        """Seconds between two requests for statistics; 0 if they are asked for on demand only."""

    def set_statistics_interval(self, seconds: float) -> None:
        """Ask for statistics every ``seconds`` from now on; 0 for on demand only."""

    def disconnect(self) -> None:
        """End the session. Rings are stopped first, as when a front-end goes away."""

    async def reclaim(self, method: ReclaimMethod | None = None) -> ReclaimResult:
        """Make the guest give up memory that it does not use, once; None leaves the method to the device."""
