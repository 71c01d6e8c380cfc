"""What the control socket needs of one virtual machine. :class:`VmControl` is it; tests have others."""

from typing import Protocol

from host.control.reclaim import ReclaimMethod, ReclaimResult
from host.control.vm_facts import GuestStatistics, VmInfo


class ControlledVm(Protocol):
    """The controls. Each method raises :class:`protocol.errors.BalloonError` with one line if it cannot be done."""

    def info(self) -> VmInfo:
        """Return what is known at once."""

    def set_num_pages(self, num_pages: int) -> None:
        """Wish for a balloon of ``num_pages`` 4096-byte pages."""

    @property
    def last_statistics(self) -> GuestStatistics | None:
        """The statistics that came last, if any have."""

    async def statistics(self) -> GuestStatistics:
        """Ask the guest for fresh statistics."""

    @property
    def statistics_interval(self) -> float:
        """Seconds between two requests for statistics; 0 for only on demand."""

    def set_statistics_interval(self, seconds: float) -> None:
        """Ask for statistics every ``seconds`` from now on, or, for 0, only on demand."""

    async def reclaim(self, method: ReclaimMethod | None = None) -> ReclaimResult:
        """Make the guest give up memory that it does not use, once; None leaves the method to the device."""
