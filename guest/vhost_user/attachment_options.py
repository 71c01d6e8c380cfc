"""What a machine wants of its device and of the session with its back-end."""

from dataclasses import dataclass, field

from guest.balloon.virtio_balloon import WANTED, accept_features
from guest.vhost_user.frontend import IN_BAND, WANTED_PROTOCOL_FEATURES
from guest.virtqueue.ring_memory import RING_FEATURES, RingOptions
from protocol.errors import VhostUserError
from protocol.vhost_user import ProtocolFeature
from protocol.virtio import FeatureBit, feature_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentOptions:
    """What the machine's driver wants of a device, and what its front-end does: whether kicks and interrupts travel
    ``in_band``, as messages, and whether it is to ``resume`` with the next back-end.

    ``wanted`` are the features that the driver understands; those of rings are decided by ``ring`` alone.
    ``page_poison`` is the pattern of free pages, one byte four times, as
    :func:`guest.balloon.virtio_balloon.accept_features` takes it.
    """

    wanted: int = WANTED
    ring: RingOptions = field(default_factory=RingOptions)
    page_poison: int | None = None
    in_band: bool = False
    resume: bool = False

    @property
    def protocol_features(self) -> int:
        """The protocol features to negotiate where they are offered."""
        events = feature_mask(ProtocolFeature.STATUS, ProtocolFeature.RESET_DEVICE)
        inflight = feature_mask(ProtocolFeature.INFLIGHT_SHMFD) if self.resume else 0
        return WANTED_PROTOCOL_FEATURES | events | inflight | (IN_BAND if self.in_band else 0)

    def accept(self, offered: int) -> int:
        """Return the features to accept of those offered.

        Raises:
            VhostUserError: the device does not offer rings of the kind that was asked for.
        """
        missing = self.ring.required & ~offered
        if missing:
            kind = "packed rings" if missing & feature_mask(FeatureBit.RING_PACKED) else "use in order"
            raise VhostUserError(f"the back-end does not offer {kind}")
        wanted = self.wanted & ~RING_FEATURES | self.ring.features
        return accept_features(offered, wanted=wanted, page_poison=self.page_poison)
