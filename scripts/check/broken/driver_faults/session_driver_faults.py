"""Faults of a driver's rings, of how it brings the device up, and of its front-end."""

import asyncio
from typing import Any

from guest.balloon.balloon_worker import BalloonWorker
from guest.balloon.reporting_worker import ReportingWorker
from guest.vhost_user import attachment as attachment_module
from guest.vhost_user import backend_channel
from guest.vhost_user import frontend as frontend_module
from guest.vhost_user.attachment import Attachment
from guest.vhost_user.attachment_options import AttachmentOptions
from guest.vhost_user.frontend import Frontend
from guest.vhost_user.request_channel import RequestChannel
from guest.virtqueue.split_virtqueue import SplitDriverVirtqueue as Split
from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError
from protocol.split_ring import Descriptor
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringFile
from protocol.virtio import DeviceStatus, feature_mask
from protocol.virtio_balloon import BalloonFeature
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT
from scripts.check.broken.driver_fault import driver_fault
from scripts.check.broken.fault import replaced
from scripts.check.driver.observation import UNKNOWN_FEATURE
from scripts.check.driver.scenario import Act

# -- features and status ----------------------------------------------------------------------------------------------


def _accept(change: Any) -> None:
    def make(original: Any) -> Any:
        return lambda self, offered: change(original(self, offered))

    replaced(AttachmentOptions, "accept", make)


@driver_fault("feature-without-meaning", caught_by=("driver-features",))
def _() -> None:
    """Every offered feature is accepted, also one that the driver cannot know."""
    _accept(lambda features: features | 1 << UNKNOWN_FEATURE)


@driver_fault("feature-not-offered", caught_by=("driver-features",), features="statistics=off")
def _() -> None:
    """STATS_VQ is accepted although it is not offered."""
    _accept(lambda features: features | feature_mask(BalloonFeature.STATS_VQ))


@driver_fault("unknown-feature-stops-it", caught_by=("driver-unknown-feature",))
def _() -> None:
    """The driver does nothing where a feature is offered that it does not know."""
    for worker in (BalloonWorker, ReportingWorker):
        replaced(worker, "attach", lambda original: lambda self, attachment: None)
        replaced(worker, "config_changed", lambda original: lambda self, config: None)


@driver_fault("status-bit-cleared", caught_by=("driver-status",))
def _() -> None:
    """Each step writes its own bit of the device status alone."""

    def add(self: Any, status: DeviceStatus) -> Any:
        yield from self._call(FrontendRequest.SET_STATUS, int(status))

    replaced(Frontend, "_add_status", lambda original: add)


@driver_fault("kick-before-driver-ok", caught_by=("driver-ok-first",))
def _() -> None:
    """The queues are kicked before DRIVER_OK is set."""

    def make(original: Any) -> Any:
        async def start_queues(self: Any) -> None:
            await original(self)
            for queue in self.queues.values():
                queue.kick()
            await asyncio.sleep(0.1)

        return start_queues

    replaced(Attachment, "_start_queues", make)


@driver_fault("queue-numbers-swapped", Act.STATISTICS, caught_by=("driver-statistics",))
def _() -> None:
    """The statistics queue has number 0, and the inflate queue its number."""

    def make(original: Any) -> Any:
        def queue_order(features: int) -> Any:
            inflate, deflate, statistics, *others = original(features)
            return [statistics, deflate, inflate, *others]

        return queue_order

    replaced(attachment_module, "queue_order", make)


# -- rings ------------------------------------------------------------------------------------------------------------


@driver_fault("kicks-never", Act.STATISTICS, caught_by=("driver-kicks",), seconds=2.5)
def _() -> None:
    """The driver never kicks."""
    replaced(Split, "needs_kick", lambda original: lambda self: False)


@driver_fault("avail-flags-with-event-idx", caught_by=("driver-interrupt-flags",))
def _() -> None:
    """avail.flags is 1 although EVENT_IDX was negotiated."""

    def make(original: Any) -> Any:
        def publish(self: Any, head: int) -> None:
            self._ring.avail[0] = 1
            original(self, head)

        return publish

    replaced(Split, "_publish", make)


@driver_fault("avail-index-backwards", caught_by=("driver-ring-rules",))
def _() -> None:
    """The available index goes back by one with the second buffer."""

    def make(original: Any) -> Any:
        def publish(self: Any, head: int) -> None:
            if self._avail_index == 1:
                self._avail_index = 0xFFFF
            original(self, head)

        return publish

    replaced(Split, "_publish", make)


@driver_fault("indirect-and-next", caught_by=("driver-ring-rules",), guest=("--indirect", "on"))
def _() -> None:
    """The descriptor of an indirect table has NEXT as well."""

    def make(original: Any) -> Any:
        def publish(self: Any, head: int) -> None:
            address, length, flags, _ = self._ring.read_descriptor(head)
            if flags & VIRTQ_DESC_F_INDIRECT:
                following = (head + 1) % self._ring.size
                self._ring.write_descriptor(head, Descriptor(address, length, flags | VIRTQ_DESC_F_NEXT, following))
            original(self, head)

        return publish

    replaced(Split, "_publish", make)


@driver_fault("descriptors-shared", Act.STATISTICS, caught_by=("driver-buffers-apart",))
def _() -> None:
    """The statistics buffer is made available a second time while the device has it."""

    def make(original: Any) -> Any:
        async def send(self: Any, attachment: Any) -> None:
            def again() -> None:
                queue._virtqueue._publish(next(iter(queue._waiting)))
                queue.kick()

            queue = next(each for kind, each in attachment.queues.items() if kind.value == "stats")
            asyncio.get_running_loop().call_later(0.2, again)
            await original(self, attachment)

        return send

    replaced(BalloonWorker, "_send_statistics", make)


@driver_fault("in-order-broken", caught_by=("driver-in-order",), guest=("--in-order", "on"))
def _() -> None:
    """With IN_ORDER every buffer leaves one descriptor of the table out."""

    def make(original: Any) -> Any:
        def take(self: Any, count: int) -> list[int]:
            self._free_head = (self._free_head + 1) % self._ring.size
            taken: list[int] = original(self, count)
            return taken

        return take

    replaced(Split, "_take", make)


# -- the front-end ----------------------------------------------------------------------------------------------------


@driver_fault("wrong-reply-taken", Act.WRONG_REPLY, caught_by=("driver-hangs-up",))
def _() -> None:
    """A reply to another request is taken for the one that is waited for."""

    def make(original: Any) -> Any:
        async def exchange(self: Any, call: Any) -> Any:
            try:
                return await original(self, call)
            except VhostUserError:
                return DeviceConfig(offset=0, flags=0, data=BalloonConfig().build())

        return exchange

    replaced(RequestChannel, "_exchange", make)


@driver_fault("back-end-not-answered", Act.BALLOON, caught_by=("driver-answers",))
def _() -> None:
    """The back-end's requests get no reply although they ask for one."""
    replaced(backend_channel, "build_ack", lambda original: lambda request, status: b"")


@driver_fault("descriptor-flag-wrong", caught_by=("driver-descriptors-told",))
def _() -> None:
    """Bit 8 of SET_VRING_CALL says that no descriptor comes, and one does."""

    def make(original: Any) -> Any:
        def build(request: Any, payload: Any = None, **flags: Any) -> bytes:
            if request is FrontendRequest.SET_VRING_CALL:
                payload = VringFile(payload.index, has_file=False)
            data: bytes = original(request, payload, **flags)
            return data

        return build

    replaced(frontend_module, "build_message", make)


@driver_fault("memory-without-descriptor", caught_by=("driver-memory-table",))
def _() -> None:
    """SET_MEM_TABLE has a descriptor fewer than regions."""

    def make(original: Any) -> Any:
        def set_memory(self: Any, regions: Any, fds: Any) -> Any:
            yield from original(self, regions, fds[:-1])

        return set_memory

    replaced(Frontend, "set_memory", make)
