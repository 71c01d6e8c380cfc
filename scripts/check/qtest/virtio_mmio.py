"""The registers of a virtio device on a memory-mapped bus, as a driver uses them.

Source: virtio 1.2, 4.2.2 (register layout) and 4.2.3 (initialisation).
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = 0x74726976
VERSION: Final = 2
CONFIG_AT: Final = 0x100

INTERRUPT_USED: Final = 1
INTERRUPT_CONFIG: Final = 2


class Register(IntEnum):
    """Offsets of the registers, each of 32 bits."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DEVICE_LOW = 0x0A0


class Bus(NamedTuple):
    """How registers are reached: ``read(address, bytes)`` and ``write(address, bytes, value)``."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


class VirtioMmio:
    """A device whose registers begin at address ``base`` of ``bus``."""

    def __init__(self, bus: Bus, base: int) -> None:
        self._bus = bus
        self._base = base

    def read(self, register: Register) -> int:
        """Return a register."""
        return self._bus.read(self._base + register, 4)

    def write(self, register: Register, value: int) -> None:
        """Set a register."""
        self._bus.write(self._base + register, 4, value)

    def is_virtio(self, device_id: int) -> bool:
        """Return whether a device of version 2 and type ``device_id`` is here."""
        return (
            self.read(Register.MAGIC_VALUE) == MAGIC
            and self.read(Register.VERSION) == VERSION
            and self.read(Register.DEVICE_ID) == device_id
        )

    def offered(self) -> int:
        """Return the feature bits that the device offers."""
        features = 0
        for word in range(2):
            self.write(Register.DEVICE_FEATURES_SEL, word)
            features |= self.read(Register.DEVICE_FEATURES) << 32 * word
        return features

    def accept(self, features: int) -> None:
        """Write the feature bits that the driver accepts."""
        for word in range(2):
            self.write(Register.DRIVER_FEATURES_SEL, word)
            self.write(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)

    def queue_size_max(self, index: int) -> int:
        """Return the largest size that a queue may have, 0 if there is no such queue."""
        self.write(Register.QUEUE_SEL, index)
        return self.read(Register.QUEUE_NUM_MAX)

    def set_up_queue(self, index: int, size: int, places: tuple[int, int, int]) -> None:
        """Place a queue: guest addresses of descriptor, driver and device area. It is ready afterwards."""
        self.write(Register.QUEUE_SEL, index)
        self.write(Register.QUEUE_NUM, size)
        registers = (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW)
        for register, address in zip(registers, places, strict=True):
            self._bus.write(self._base + register, 4, address & 0xFFFF_FFFF)
            self._bus.write(self._base + register + 4, 4, address >> 32)
        self.write(Register.QUEUE_READY, 1)

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space, whole aligned words at once."""
        data = b""
        while len(data) < length:
            at = offset + len(data)
            width = 4 if at % 4 == 0 and length - len(data) >= 4 else 1
            data += self._bus.read(self._base + CONFIG_AT + at, width).to_bytes(width, "little")
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the configuration space, whole aligned words at once."""
        done = 0
        while done < len(data):
            at = offset + done
            width = 4 if at % 4 == 0 and len(data) - done >= 4 else 1
            value = int.from_bytes(data[done : done + width], "little")
            self._bus.write(self._base + CONFIG_AT + at, width, value)
            done += width
