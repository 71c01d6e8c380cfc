"""The configuration space of the balloon on the wire.

Source: virtio 1.2, 5.5.4."""

from collections.abc import Container
from dataclasses import dataclass

from construct import Int32ul, Struct

from protocol.virtio_balloon import CONFIG_SIZE

_CONFIG = Struct("num_pages" / Int32ul, "actual" / Int32ul, "free_page_hint_cmd_id" / Int32ul, "poison_val" / Int32ul)

assert _CONFIG.sizeof() == CONFIG_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonConfig:
    """The configuration space (virtio 1.2, 5.5.4). Little-endian on the wire, always.

    ``num_pages`` is the size that the host asks for and ``actual`` the size that the driver says the balloon has, both
    in 4096-byte pages. ``poison_val`` is the 32-bit pattern that free pages of the guest hold.
    """

    num_pages: int = 0
    actual: int = 0
    free_page_hint_cmd_id: int = 0
    poison_val: int = 0

    def build(self) -> bytes:
        """Return the 16 bytes of the configuration space."""
        return bytes(
            _CONFIG.build(
                {
                    "num_pages": self.num_pages,
                    "actual": self.actual,
                    "free_page_hint_cmd_id": self.free_page_hint_cmd_id,
                    "poison_val": self.poison_val,
                }
            )
        )

    @staticmethod
    def parse(data: bytes) -> "BalloonConfig":
        """Return the configuration that ``data`` begins with; fields beyond its end read as zero."""
        parsed = _CONFIG.parse(data[:CONFIG_SIZE].ljust(CONFIG_SIZE, b"\0"))
        return BalloonConfig(
            num_pages=parsed.num_pages,
            actual=parsed.actual,
            free_page_hint_cmd_id=parsed.free_page_hint_cmd_id,
            poison_val=parsed.poison_val,
        )

    def written_by_driver(self, offset: int, data: bytes, *, writable: Container[int]) -> "BalloonConfig":
        """Return the configuration after a driver wrote ``data`` at byte ``offset``.

        A write may be wider than the field: QEMU sends the whole window whenever the guest writes a field. Only
        bytes at positions that are ``writable`` take effect: as the specification has it ``actual`` and ``poison_val``.
        """
        current = bytearray(self.build())
        for position, byte in enumerate(data, offset):
            if position in writable:
                current[position] = byte
        return BalloonConfig.parse(bytes(current))
