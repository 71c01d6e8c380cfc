"""What a command may ask of one virtual machine: the interface above the controls, without code of its own.

:class:`host.control.vm_control.VmControl` provides it.
"""

from typing import Protocol

from host.control.guest_statistics import GuestStatistics
from host.control.reclaim_progress import NO_LIMITS, ReclaimLimits, ReclaimMethod, ReclaimResult
from host.control.vm_facts import VmInfo
from host.inhibition.inhibition import Inhibition


class VmInterface(Protocol):
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

    async def inhibit(self, why: str) -> None:
        """Acknowledge reports without discarding from now on."""

    async def allow(self, *, force: bool = False) -> Inhibition | None:
        """Discard again. Return what inhibits it still."""

    def disconnect(self) -> None:
        """End the session. Rings are stopped first, as when a front-end goes away."""

    async def reclaim(self, method: ReclaimMethod | None = None, limits: ReclaimLimits = NO_LIMITS) -> ReclaimResult:
        """Make the guest give up memory that it does not use, once; None leaves the method to the device."""
