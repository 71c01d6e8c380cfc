"""The balloon device on the wire: feature bits, configuration space, queues, statistics tags.

Source: virtio 1.2, 5.5."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from construct import Int32ul, Struct

from protocol.virtio import FeatureBit, has_feature

PFN_SHIFT: Final = 12
"""Balloon page frame numbers always count 4096-byte units (virtio 1.2, 5.5.6)."""

PFN_SIZE: Final = 4
"""Bytes of one little-endian page frame number in an inflate or deflate buffer."""


class BalloonFeature(IntEnum):
    """Bit numbers of the balloon's own features (virtio 1.2, 5.5.3)."""

    MUST_TELL_HOST = 0
    STATS_VQ = 1
    DEFLATE_ON_OOM = 2
    FREE_PAGE_HINT = 3
    PAGE_POISON = 4
    PAGE_REPORTING = 5


_FEATURE_NAMES: Final = {
    BalloonFeature.STATS_VQ: "statistics",
    FeatureBit.RING_PACKED: "packed",
    FeatureBit.RING_INDIRECT_DESC: "indirect",
    FeatureBit.RING_EVENT_IDX: "event-idx",
}
"""The names that differ from the specification's: those that ``--features`` has for these bits."""


def feature_bit_names(features: int) -> list[str]:
    """Return a name for each bit that is set in the 64-bit feature word ``features``, the lowest first.

    These are the names of the options that switch features, then the specification's in the same spelling, such as
    ``version-1``, and ``bit-N`` for a bit that has neither.
    """
    names = {bit.value: bit.name.lower().replace("_", "-") for kind in (BalloonFeature, FeatureBit) for bit in kind}
    names |= {int(bit): name for bit, name in _FEATURE_NAMES.items()}
    return [names.get(bit, f"bit-{bit}") for bit in range(64) if has_feature(features, bit)]


class BalloonQueue(Enum):
    """The five queues by what they carry (virtio 1.2, 5.5.2); their numbers follow from :func:`queue_order`."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    FREE_PAGE = "free_page"
    REPORTING = "reporting"


QUEUES_MAX: Final = len(BalloonQueue)

_OPTIONAL_QUEUES: Final = (
    (BalloonFeature.STATS_VQ, BalloonQueue.STATS),
    (BalloonFeature.FREE_PAGE_HINT, BalloonQueue.FREE_PAGE),
    (BalloonFeature.PAGE_REPORTING, BalloonQueue.REPORTING),
)


@lru_cache(maxsize=1024)
def queue_order(features: int) -> tuple[BalloonQueue, ...]:
    """Return the queues that exist under ``features``, in the order of their numbers.

    Numbers are dense: an absent queue takes none. The specification's table gives each queue a fixed number instead,
    but Linux numbers the queues that it asks for one after another (virtio_find_vqs in the transports), so page
    reporting is queue 2, 3 or 4. Pass the negotiated features for what a driver sees.
    """
    optional = tuple(queue for feature, queue in _OPTIONAL_QUEUES if has_feature(features, feature))
    return (BalloonQueue.INFLATE, BalloonQueue.DEFLATE, *optional)


class QueueDialect(Enum):
    """Ways to number the queues that exist under the negotiated features.

    - NEGOTIATED: one after another, like Linux and all its transports.
    - OFFERED: as if every offered feature had been negotiated, like QEMU's own balloon.
    - FIXED: the numbers 0 to 4 of the specification's table, always.
    """

    NEGOTIATED = "negotiated"
    OFFERED = "offered"
    FIXED = "fixed"


@lru_cache(maxsize=1024)
def queue_numbers(dialect: QueueDialect, *, negotiated: int, offered: int) -> Mapping[int, BalloonQueue]:
    """Return the queues that exist under the ``negotiated`` features by their numbers in ``dialect``."""
    numbered = {
        QueueDialect.NEGOTIATED: queue_order(negotiated),
        QueueDialect.OFFERED: queue_order(offered),
        QueueDialect.FIXED: tuple(BalloonQueue),
    }[dialect]
    existing = queue_order(negotiated)
    return MappingProxyType({index: queue for index, queue in enumerate(numbered) if queue in existing})


NUM_PAGES_MAX: Final = (1 << 32) - 1
"""Most 4096-byte pages that ``num_pages`` and ``actual`` can count (le32)."""

CONFIG_SIZE: Final = 16
"""Bytes of the whole configuration space: four 32-bit fields."""

CONFIG_ACTUAL: Final = range(4, 8)
CONFIG_POISON_VAL: Final = range(12, 16)
"""Byte positions of the two fields that a driver may write (virtio 1.2, 5.5.4)."""

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

    def written_by_driver(self, offset: int, data: bytes, *, poison_writable: bool) -> "BalloonConfig":
        """Return the configuration after a driver wrote ``data`` at byte ``offset``.

        A write may be wider than the field: QEMU sends the whole window whenever the guest writes a field. Only
        bytes that fall on ``actual``, and on ``poison_val`` where that is still writable, take effect.
        """
        current = bytearray(self.build())
        writable = {*CONFIG_ACTUAL, *(CONFIG_POISON_VAL if poison_writable else ())}
        for position, byte in enumerate(data, offset):
            if position in writable:
                current[position] = byte
        new = BalloonConfig.parse(bytes(current))
        return replace(self, actual=new.actual, poison_val=new.poison_val)
