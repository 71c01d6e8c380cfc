"""The balloon driver: the features that it accepts, the buffers of a report.

Behaviour as in Linux ``drivers/virtio/virtio_balloon.c``: virtballoon_validate, virtballoon_free_page_report.
"""

from collections.abc import Sequence
from typing import Final

from guest.virtqueue.virtqueue import Buffer
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature

WANTED: Final = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_INDIRECT_DESC,
    BalloonFeature.MUST_TELL_HOST,
    BalloonFeature.STATS_VQ,
    BalloonFeature.DEFLATE_ON_OOM,
    BalloonFeature.FREE_PAGE_HINT,
    BalloonFeature.PAGE_REPORTING,
)
"""Features that this driver understands."""


def accept_features(offered: int, *, wanted: int = WANTED, page_poison: int | None = None) -> int:
    """Return the features to accept of those offered.

    ``page_poison`` is the 32-bit pattern that the guest fills free pages with, None without one. As in
    virtballoon_validate: a guest that relies on the pattern may report pages only to a device that knows the pattern.
    """
    features = offered & wanted
    if page_poison is not None and has_feature(offered, BalloonFeature.PAGE_POISON):
        features |= feature_mask(BalloonFeature.PAGE_POISON)
    elif page_poison is not None:
        features &= ~feature_mask(BalloonFeature.PAGE_REPORTING)
    if not has_feature(features, BalloonFeature.PAGE_REPORTING):
        features &= ~feature_mask(BalloonFeature.DEVICE_INIT_REPORTED)  # it is about reports
    return features


def is_kept_for_poison(features: int, page_poison: int | None) -> bool:
    """Return whether a device with ``features`` leaves the host's memory under free pages that hold ``page_poison``.

    Without PAGE_POISON it is not told of them. With it, it may not change what they hold (virtio 1.2, 5.5.6.7.2), and a
    discarded page reads as zero.
    """
    return page_poison is not None and (page_poison != 0 or not has_feature(features, BalloonFeature.PAGE_POISON))


def report_buffers(blocks: Sequence[tuple[int, int]]) -> list[Buffer]:
    """Return the device-writable buffers of a report of free ``blocks``, pairs of pfn and order."""
    return [(pfn * PAGE_SIZE, PAGE_SIZE << order) for pfn, order in blocks]
