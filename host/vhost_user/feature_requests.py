"""The messages about the session itself: features, protocol features, the owner, the back-end's channel.

Source: vhost-user specification, "Front-end message types", "Protocol features".
"""

from host.vhost_user.actions import Announce, Effects, SetBackendChannel
from host.vhost_user.ring_control import RingControl
from host.vhost_user.session import Handler, Handling, MustClose, Session, u64_of
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.virtio import LOG_ALL, PROTOCOL_FEATURES, FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import queue_order


class FeatureRequests:
    """Carries out the messages that are about no ring and no memory."""

    def __init__(self, session: Session, rings: RingControl) -> None:
        self._session = session
        self._rings = rings

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.GET_FEATURES: self._get_features,
            FrontendRequest.SET_FEATURES: self._set_features,
            FrontendRequest.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            FrontendRequest.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            FrontendRequest.GET_QUEUE_NUM: self._get_queue_num,
            FrontendRequest.SET_OWNER: self._nothing,
            # Deprecated by the specification, which lets a back-end ignore it; state is never dropped here.
            FrontendRequest.RESET_OWNER: self._nothing,
            FrontendRequest.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
        }

    def _nothing(self, _message: Message) -> Effects:
        yield from ()

    def _get_features(self, _message: Message) -> Handling:
        # User Mode Linux that removes its driver says ENABLE 0 for each ring and asks for the features, to know that
        # all of it was done; then it frees the rings. Having lost bit 30 it says the latter only.
        session = self._session
        if session.lost_bit_30 and session.has_protocol_feature(ProtocolFeature.REPLY_ACK):
            yield from self._rings.halt_all()
        return session.offered

    def _set_features(self, message: Message) -> Effects:
        features = u64_of(message)
        session = self._session
        session.features_refused = True
        if unknown := features & ~session.offered:
            raise VhostUserError(f"feature bits {unknown:#x} were not offered")
        if not has_feature(features, FeatureBit.VERSION_1):
            raise VhostUserError("VERSION_1 was not accepted, and this device has no legacy mode")
        if (features ^ session.features) & ~LOG_ALL:
            yield from self._rings.pause_all()  # what runs has the old features' queue order and ring rules
        if queue_order(features) != queue_order(session.features):
            session.queue_numbers.forget()
        session.features = session.balloon.features = features
        session.features_refused = False
        queues = [queue.value for queue in queue_order(features)]
        yield Announce("features", {"negotiated": features, "queues": queues})
        if not features & PROTOCOL_FEATURES:
            # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled
            # state." User Mode Linux loses bit 30 on a second SET_FEATURES and then never enables a ring.
            for vring in session.vrings:
                if vring.resumes and not vring.enabled:
                    yield from self._rings.halt(vring)  # its driver is gone, and the next one sets up its own
                vring.enabled = True
        yield from self._rings.run_wanted()
        yield from self._rings.relog()

    def _get_protocol_features(self, _message: Message) -> Handling:
        yield from ()
        return self._session.offered_protocol_features

    def _set_protocol_features(self, message: Message) -> Effects:
        features = u64_of(message)
        if unknown := features & ~self._session.offered_protocol_features:
            raise VhostUserError(f"protocol feature bits {unknown:#x} were not offered")
        if has_feature(features, ProtocolFeature.INBAND_NOTIFICATIONS):
            needed = feature_mask(ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)
            if features & needed != needed:
                # "the back-end must close the connection", since there is no other way to tell.
                raise MustClose("INBAND_NOTIFICATIONS without both BACKEND_REQ and REPLY_ACK")
        if features != self._session.protocol_features:
            yield from self._rings.pause_all()  # they were told whether their notifications are messages
        self._session.protocol_features = features
        yield from self._rings.run_wanted()

    def _get_queue_num(self, _message: Message) -> Handling:
        yield from ()
        return self._session.queue_numbers.count(self._session.offered)

    def _set_backend_req_fd(self, message: Message) -> Effects:
        yield SetBackendChannel(message.fds[0])
        self._session.has_backend_channel = True
        yield from self._rings.tell_news()
