"""The facts about one virtual machine, and the statistics of its guest, as values."""

import time
from dataclasses import dataclass

from host.vhost_user.device_setup import DeviceSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    """The facts about one virtual machine.

    ``num_pages`` is the size that its balloon should have and ``actual`` the size that the driver says it has, in
    4096-byte pages. ``features`` are the negotiated feature bits. ``driver_ready`` says that a driver is at work, and
    ``setup`` how it has set the device up.
    """

    pid: int
    memory_bytes: int
    num_pages: int
    actual: int
    features: int
    driver_ready: bool
    setup: DeviceSetup


@dataclass(frozen=True, slots=True)
class GuestStatistics:
    """A guest's statistics: ``values`` by the specification's names in lower case, ``taken`` when they came
    (CLOCK_MONOTONIC, seconds)."""

    values: dict[str, int]
    taken: float

    @property
    def age(self) -> float:
        """Seconds since they came."""
        return time.monotonic() - self.taken
