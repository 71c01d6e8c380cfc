"""The balloon driver: what it accepts, which queues it asks for, how it hands a report to the device.

Behaviour as in Linux ``drivers/virtio/virtio_balloon.c``: virtballoon_validate, init_vqs, virtballoon_free_page_report.

Must not know: sockets, how the pages were found.
"""

from collections.abc import Sequence
from typing import Final

from guest.virtqueue import DriverVirtqueue
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue, queue_order

WANTED: Final = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_INDIRECT_DESC,
    BalloonFeature.PAGE_REPORTING,
    BalloonFeature.DEFLATE_ON_OOM,
)
"""Features that this driver understands."""


def accept_features(offered: int, *, wanted: int = WANTED, page_poison: int | None = None) -> int:
    """Return the features to accept of those offered.

    ``page_poison`` is the 32-bit pattern that the guest fills free pages with, None if it does not. As in
    virtballoon_validate: a guest that relies on the pattern may report pages only to a device that was told of it.
    """
    features = offered & wanted
    if page_poison is None:
        return features
    if has_feature(offered, BalloonFeature.PAGE_POISON):
        return features | feature_mask(BalloonFeature.PAGE_POISON)
    return features & ~feature_mask(BalloonFeature.PAGE_REPORTING)


class BalloonDriver:
    """The driver bound to a device with the negotiated ``features``, over one virtqueue for each queue that exists."""

    def __init__(self, features: int, queues: Sequence[DriverVirtqueue]) -> None:
        self.features = features
        self._queues = dict(zip(queue_order(features), queues, strict=True))

    @property
    def can_report(self) -> bool:
        """Whether the device takes reports."""
        return BalloonQueue.REPORTING in self._queues

    def report(self, blocks: Sequence[tuple[int, int]]) -> bool:
        """Hand free ``blocks``, pairs of pfn and order, to the device; return whether to kick the reporting queue.

        They are device-writable buffers: the device may do to them what it likes until it gives them back. No page of
        them may be touched before :meth:`acknowledged` says so.

        Raises:
            QueueFullError: an earlier report is still outstanding.
        """
        queue = self._queues[BalloonQueue.REPORTING]
        queue.add((), [(pfn * PAGE_SIZE, PAGE_SIZE << order) for pfn, order in blocks])
        return queue.needs_kick()

    def acknowledged(self) -> bool:
        """Return whether the device gave a report back. Its used length means nothing and is ignored, as Linux does.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """
        queue = self._queues[BalloonQueue.REPORTING]
        if queue.get_used() is not None:
            return True
        return queue.enable_interrupt() and queue.get_used() is not None
