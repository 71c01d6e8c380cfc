"""What the controls of a virtual machine need of its connection: the interface below them, without code of its own.

:class:`host.connection.Connection` and its rings provide it.
"""

from typing import Protocol

from host.balloon.virtio_balloon import VirtioBalloon
from host.events.metrics import VmMetrics
from host.memory.guest_memory import RegionFile
from host.ring.device_facts import DeviceFacts
from host.vhost_user.device_setup import DeviceSetup
from protocol.virtio_balloon import BalloonQueue


class QueueInterface(Protocol):
    """A running queue: see :class:`host.ring.ring_service.RingService`."""

    def give_back_held(self) -> bool:
        """Give the held chain back. Return False if the ring must not be touched."""

    async def settled(self) -> None:
        """Return when every chain that was taken before has been served."""


class ConnectionInterface(Protocol):
    """One session: see :class:`host.connection.Connection`."""

    @property
    def balloon(self) -> VirtioBalloon:
        """The device."""

    @property
    def peer_pid(self) -> int:
        """Process id of the front-end."""

    @property
    def metrics(self) -> VmMetrics:
        """Counters of the guest's requests and their outcome."""

    @property
    def region_files(self) -> list[RegionFile]:
        """The files of all memory regions."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of all memory regions."""

    def queue(self, queue: BalloonQueue) -> QueueInterface | None:
        """Return a queue if it runs."""

    @property
    def driver_ready(self) -> bool:
        """Whether a driver is in control of the device."""

    @property
    def setup(self) -> DeviceSetup:
        """How the driver has set the device up."""

    @property
    def device_facts(self) -> DeviceFacts:
        """How far the driver has come with the device."""

    def disconnect(self) -> None:
        """End the session."""

    def change_config(self, **fields: int) -> None:
        """Set fields of the configuration space, and notify the driver of the change."""

    def emit(self, event: str, **fields: object) -> None:
        """Write one event."""
