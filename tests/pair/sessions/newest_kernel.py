"""The front-end of Linux 7.2 as a user process, with the habits that earlier kernels do not have.

It asks for as many queues as a balloon can have and names those that exist; unnamed ones take no number. It does not
accept INDIRECT_DESC. Its rings may be small. The virtio core sets the features a second time, without bit 30, and from
then on no ring is enabled or disabled by a message.

Source: Linux 7.2, ``drivers/virtio/virtio_balloon.c`` (init_vqs, virtballoon_validate),
``arch/um/drivers/virtio_uml.c`` (vhost_user_init, vu_find_vqs, vu_setup_vq, vu_set_features).
"""

from protocol.vhost_user import FrontendRequest
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask
from protocol.virtio_balloon import QUEUES_MAX, BalloonFeature, BalloonQueue, queue_order
from tests.pair.session import PROTOCOL_FEATURES as WANTED_PROTOCOL_FEATURES
from tests.pair.session import REGION, Shell

KNOWN = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_PACKED,
    *BalloonFeature,
)
"""The features that the driver accepts where they are offered: all but INDIRECT_DESC."""


class ProbeFailed(Exception):
    """The driver cannot be used with this device."""


class NewestKernel:
    """A virtual machine in front of ``shell``'s back-end whose rings have ``ring_size`` entries."""

    def __init__(self, shell: Shell, *, ring_size: int = 32) -> None:
        self._shell = shell
        self._ring_size = ring_size
        self._queues_max = 0
        self._offered = 0

    def connect(self) -> None:
        """Begin the session, before any driver is there."""
        ask = self._shell.ask
        ask(FrontendRequest.SET_OWNER, need_reply=False)
        offered = ask(FrontendRequest.GET_FEATURES)
        assert isinstance(offered, int)
        known = ask(FrontendRequest.GET_PROTOCOL_FEATURES)
        assert isinstance(known, int)
        ask(FrontendRequest.SET_PROTOCOL_FEATURES, known & WANTED_PROTOCOL_FEATURES)
        ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
        queues_max = ask(FrontendRequest.GET_QUEUE_NUM)
        assert isinstance(queues_max, int)
        self._offered, self._queues_max = offered, queues_max

    def probe(self) -> dict[int, BalloonQueue]:
        """Let the driver set its device up; return the number of each of its queues.

        Raises:
            ProbeFailed: the device has fewer queues than the driver asks for.
        """
        features = self._offered & KNOWN
        assert self._shell.ask(FrontendRequest.SET_FEATURES, features | PROTOCOL_FEATURES) == 0
        assert self._shell.ask(FrontendRequest.SET_FEATURES, features) == 0
        assert self._shell.memory(REGION) == 0
        if self._queues_max < QUEUES_MAX:
            raise ProbeFailed(f"{QUEUES_MAX} VQs requested, only up to 64 or {self._queues_max} supported")
        numbers = dict(enumerate(queue_order(features)))
        for index in numbers:
            self._set_up(index)
        return numbers

    def _set_up(self, index: int) -> None:
        ring = self._shell.ring
        for name, value in (
            ("CALL", 20 + index),
            ("NUM", self._ring_size),
            ("BASE", 0),
            ("ADDR", None),
            ("KICK", 10 + index),
        ):
            assert ring(name, index, value) == 0

    def remove(self) -> None:
        """Unbind the driver: without bit 30 all that is said of it is a question for the features."""
        self._shell.ask(FrontendRequest.GET_FEATURES)
