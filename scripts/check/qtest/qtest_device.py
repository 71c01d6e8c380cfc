"""QEMU's in-process balloon as a :class:`Device`, and the machine that plays its driver by registers."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from host.qmp.qmp_client import CommandError
from protocol.memory import PAGE_SIZE
from protocol.ring_formats import RingLayout
from protocol.virtio import DEVICE_ID_BALLOON, DeviceStatus
from protocol.virtio_balloon import BalloonQueue, QueueDialect, queue_numbers
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import QUEUE_SIZE, WANTED, Device, Machine, accepted
from scripts.check.machine.memory_file import MEMORY_BYTES, RINGS_AT, MemoryFile
from scripts.check.qtest.qemu_process import QemuProcess, properties_of
from scripts.check.qtest.virtio_mmio import (
    INTERRUPT_CONFIG,
    INTERRUPT_USED,
    Bus,
    Register,
    VirtioMmio,
)
from scripts.check.verdict import Failed, Found, TargetError, skip

SLOTS_AT: Final = 0xFEB0_0000
SLOT_BYTES: Final = 512
SLOTS: Final = 24
"""The places of virtio-mmio devices of a microvm. A device takes the last that is free."""

PROPERTIES: Final = "free-page-reporting=on,free-page-hint=on,iothread=hints,deflate-on-oom=on,packed=on,page-poison=on"

NEWER_PROPERTIES: Final = ("in_order",)
"""Properties that are set where QEMU has them."""


MIGRATION_BYTES_PER_SECOND: Final = 1 << 16
"""So slow that a migration does not end by itself."""


class QtestMachine(Machine):
    """A driver of registers. Interrupts are those of the device as a whole."""

    def __init__(
        self,
        memory: MemoryFile,
        device: VirtioMmio,
        features: int,
        layouts: dict[int, RingLayout],
        kinds: Mapping[int, BalloonQueue],
    ) -> None:
        super().__init__(memory, 0, features)
        self.device = device
        self._used = False
        self._config = False
        for index, layout in layouts.items():
            self.queues[index] = DriverQueue(
                memory,
                0,
                index,
                kinds.get(index),
                layout,
                features,
                send_kick=lambda index=index: self.device.write(Register.QUEUE_NOTIFY, index),  # type: ignore[misc]
                take_interrupt=self._take_used,
            )

    def set_up(self) -> None:
        """Place the queues."""
        for index, queue in self.queues.items():
            first, second, third = (queue.place + at for at in queue.layout.offsets)
            self.device.set_up_queue(index, queue.layout.size, (first, second, third))

    def begin_again(self) -> None:
        """Reset the device and bring it up once more."""
        self.reset()
        for queue in self.queues.values():
            queue.renew()
        negotiate(self.device, self.features)
        self.set_up()
        self.run()

    def run(self) -> None:
        """Set DRIVER_OK."""
        status = self.device.read(Register.STATUS)
        self.device.write(Register.STATUS, status | DeviceStatus.DRIVER_OK)

    def _look(self) -> None:
        status = self.device.read(Register.INTERRUPT_STATUS)
        if status:
            self.device.write(Register.INTERRUPT_ACK, status)
        self._used |= bool(status & INTERRUPT_USED)
        self._config |= bool(status & INTERRUPT_CONFIG)

    def _take_used(self) -> bool:
        self._look()
        taken, self._used = self._used, False
        return taken

    def config_changed(self) -> bool:
        """Return whether there was a configuration interrupt since this was last called."""
        self._look()
        taken, self._config = self._config, False
        return taken

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space."""
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the configuration space."""
        self.device.write_config(offset, data)

    def barrier(self) -> None:
        """Return when every register access was carried out: QEMU answers each."""
        self.device.read(Register.STATUS)

    def reset(self) -> None:
        """Reset the device."""
        self.device.write(Register.STATUS, 0)

    def needs_reset(self) -> bool:
        """Return whether the device status says so."""
        return bool(self.device.read(Register.STATUS) & DeviceStatus.DEVICE_NEEDS_RESET)

    def close(self) -> None:
        """Reset the device, and have its memory empty again."""
        with contextlib.suppress(TargetError):
            self.reset()
        for queue in self.queues.values():
            queue.close()
        self.memory.discard(RINGS_AT, self.memory.size - RINGS_AT)


def negotiate(device: VirtioMmio, features: int) -> None:
    """Reset the device and accept ``features``.

    Raises:
        Found: it refuses them.
    """
    device.write(Register.STATUS, 0)
    status = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
    device.write(Register.STATUS, status)
    device.accept(features)
    device.write(Register.STATUS, status | DeviceStatus.FEATURES_OK)
    if not device.read(Register.STATUS) & DeviceStatus.FEATURES_OK:
        raise Found(f"the device refuses the features {features:#x}, all of which it offers", "G-8")


class QtestDevice(Device):
    """The balloon of a QEMU that is started for it, and again after it ended in a case.

    Raises:
        TargetError: QEMU cannot be started, or has no such device.
    """

    def __init__(self, qemu: str) -> None:
        self._qemu = qemu
        self._memory = MemoryFile(MEMORY_BYTES)
        self._process: QemuProcess | None = None
        known = properties_of(qemu)
        self._properties = ",".join([PROPERTIES, *(f"{name}=on" for name in NEWER_PROPERTIES if f"{name}=" in known)])
        try:
            self._registers = self._start()
            self.offered = self._registers.offered()
        except BaseException:
            self.close()
            raise
        self.name = f"the balloon of {qemu}"

    def _start(self) -> VirtioMmio:
        self._process = QemuProcess(self._qemu, self._memory.fd, self._memory.size, self._properties)
        bus = Bus(self._process.read, self._process.write)
        for slot in reversed(range(SLOTS)):
            device = VirtioMmio(bus, SLOTS_AT + slot * SLOT_BYTES)
            if device.is_virtio(DEVICE_ID_BALLOON):
                return device
        raise TargetError(f"{self._qemu}: there is no balloon on the bus of its microvm")

    def check_reachable(self) -> None:
        """Start QEMU where it has ended."""
        if self._process is None or self._process.has_ended():
            if self._process is not None:
                self._process.close()
            self._registers = self._start()

    def how_it_ended(self) -> str:
        """Return how QEMU ended, "" while it runs."""
        if self._process is None or not self._process.has_ended():
            return ""
        return self._process.how_it_ended()

    def machine(
        self,
        *,
        wanted: int = WANTED,
        packed: bool = False,
        size: int = QUEUE_SIZE,
        dialect: QueueDialect = QueueDialect.OFFERED,
        run: bool = True,
        uninvited: int = 0,
    ) -> QtestMachine:
        """Bring the device up: see :meth:`Device.machine`. A queue is as long as asked for, or as it can be."""
        features = accepted(self.offered, wanted, packed=packed)
        self.check_reachable()
        device = self._registers
        negotiate(device, features)
        layouts = {}
        kinds = queue_numbers(dialect, negotiated=features | uninvited & self.offered, offered=self.offered)
        for index in sorted(kinds):
            most = device.queue_size_max(index)
            if most == 0:
                raise Failed(f"the device has no queue {index}", "G-7")
            layouts[index] = RingLayout(min(size, most), packed)
        machine = QtestMachine(self._memory, device, features, layouts, kinds)
        machine.set_up()
        if run:
            machine.run()
        return machine

    def resize(self, machine: Machine, pages: int) -> None:
        """Ask for a balloon of ``pages`` by QMP."""
        self._monitor("balloon", value=self._memory.size - pages * PAGE_SIZE)

    def pause(self, machine: Machine) -> None:
        """Stop QEMU's machine."""
        self._monitor("stop")

    def go_on(self, machine: Machine) -> None:
        """Have QEMU's machine go on."""
        self._monitor("cont")

    @contextlib.contextmanager
    def hint_round(self, machine: Machine) -> Iterator[None]:
        """Have QEMU ask for hints, which it does while it migrates; that is given up when the context is left."""
        try:
            self._monitor("migrate-set-parameters", **{"max-bandwidth": MIGRATION_BYTES_PER_SECOND})
            self._monitor("migrate", uri="exec:cat > /dev/null")
        except CommandError as error:
            skip(f"QEMU does not migrate: {error.description}")
        try:
            yield
        finally:
            self._monitor("migrate_cancel")
            if not becomes_true(lambda: self._monitor("query-migrate")["status"] == "cancelled"):
                raise TargetError("QEMU does not give its migration up")

    def _monitor(self, name: str, **arguments: object) -> Any:
        if self._process is None:
            skip("QEMU has ended")
        return self._process.monitor(name, **arguments)

    def close(self) -> None:
        """End QEMU and give its memory up."""
        if self._process is not None:
            self._process.close()
        self._memory.close()
