"""The balloon device: feature bits, queues and their numbers. The configuration space is in ``balloon_config``.

Source: virtio 1.2, 5.5."""

from collections.abc import Mapping
from enum import Enum, IntEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from protocol.virtio import FeatureBit, has_feature

PFN_SHIFT: Final = 12
"""Balloon page frame numbers always count 4096-byte units (virtio 1.2, 5.5.6)."""

PFN_SIZE: Final = 4
"""Bytes of one little-endian page frame number in an inflate or deflate buffer."""


class BalloonFeature(IntEnum):
    """Bit numbers of the balloon's own features (virtio 1.2, 5.5.3), and two of drafts.

    DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE are proposed (oasis-tcs/virtio-spec #244 and #242): numbers and
    meaning may change. StratoVirt has a private feature of its own, MESSAGE_VQ, on bit 6.

    - DEVICE_INIT_REPORTED: the used length of a report says how many of its bytes, from the first on, are initialised.
    - DEVICE_INIT_ON_INFLATE: a device-writable bitmap follows the page numbers of an inflate chain. Bit ``i`` of it,
      the lowest of a byte first, says that page ``i`` is initialised; the used length is the bytes of the bitmap.

    Initialised pages hold zeros, or ``poison_val`` where PAGE_POISON is negotiated.
    """

    MUST_TELL_HOST = 0
    STATS_VQ = 1
    DEFLATE_ON_OOM = 2
    FREE_PAGE_HINT = 3
    PAGE_POISON = 4
    PAGE_REPORTING = 5
    DEVICE_INIT_REPORTED = 6
    DEVICE_INIT_ON_INFLATE = 7


_FEATURE_NAMES: Final = {
    BalloonFeature.STATS_VQ: "statistics",
    BalloonFeature.DEVICE_INIT_REPORTED: "draft-init-reported",
    BalloonFeature.DEVICE_INIT_ON_INFLATE: "draft-init-on-inflate",
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

DRIVER_FIELDS: Final = frozenset({*CONFIG_ACTUAL, *CONFIG_POISON_VAL})
