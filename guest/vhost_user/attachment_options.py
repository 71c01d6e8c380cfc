"""The options of a machine's device and of its session with the back-end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from guest.vhost_user.frontend import IN_BAND, WANTED_PROTOCOL_FEATURES
from guest.virtqueue.ring_memory import RING_FEATURES, RingOptions
from protocol.errors import VhostUserError
from protocol.vhost_user import ProtocolFeature
from protocol.virtio import FeatureBit, feature_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentOptions:
    """The driver's choice of features and the front-end's choice of transport.

    ``accept_features`` returns which of the features offered the driver accepts; ``ring`` decides the features of
    rings. ``page_poison`` is the pattern of free pages, one byte four times, which is written to ``poison_val`` where
    PAGE_POISON is accepted; None without a pattern. With ``in_band`` kicks and interrupts are messages of the session.
    With ``resume`` the next back-end continues the same rings.
    """

    accept_features: Callable[[int], int]
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
        return self.accept_features(offered & ~RING_FEATURES) | offered & self.ring.features
