"""What the control socket needs of one virtual machine. :class:`host.vm_control.VmControl` is it; tests have others.

Must not know: who asks, and how anything is done.
"""

from collections.abc import Mapping
from typing import Protocol


class VmFacts(Protocol):
    """What is known at once. Sizes of the balloon are 4096-byte pages."""

    @property
    def pid(self) -> int:
        """Process id of the front-end."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of all memory that the front-end has told; 0 before it has."""

    @property
    def num_pages(self) -> int:
        """The size that the balloon should have."""

    @property
    def actual(self) -> int:
        """The size that the driver says it has."""

    @property
    def features(self) -> int:
        """The negotiated feature bits."""

    @property
    def driver_ready(self) -> bool:
        """Whether a driver is at work."""


class Statistics(Protocol):
    """What a guest said of itself."""

    @property
    def values(self) -> Mapping[str, int]:
        """Statistics by the specification's names in lower case."""

    @property
    def age(self) -> float:
        """Seconds since they came."""


class Reclaimed(Protocol):
    """What came of one reclaiming."""

    @property
    def method(self) -> str:
        """``hint`` or ``inflate``."""

    @property
    def hinted_bytes(self) -> int:
        """Bytes that the driver named as free."""

    @property
    def discarded_bytes(self) -> int:
        """Bytes that were given back to the system."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def complete(self) -> bool:
        """Whether the guest went through with it."""


class ControlledVm(Protocol):
    """The controls. Each method raises :class:`protocol.errors.BalloonError` with one line if it cannot be done."""

    def info(self) -> VmFacts:
        """Return what is known at once."""

    def set_num_pages(self, num_pages: int) -> None:
        """Wish for a balloon of ``num_pages`` 4096-byte pages."""

    @property
    def last_statistics(self) -> Statistics | None:
        """The statistics that came last, if any have."""

    async def statistics(self) -> Statistics:
        """Ask the guest for fresh statistics."""

    @property
    def statistics_interval(self) -> float:
        """Seconds between two requests for statistics; 0 for only on demand."""

    def set_statistics_interval(self, seconds: float) -> None:
        """Ask for statistics every ``seconds`` from now on, or, for 0, only on demand."""

    async def reclaim(self, method: str | None = None) -> Reclaimed:
        """Make the guest give up memory that it does not use, once; None leaves the method to the device."""
