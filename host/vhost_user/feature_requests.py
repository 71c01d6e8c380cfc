"""The messages about the session itself: features, protocol features, the owner, the back-end's channel.

Source: vhost-user specification, "Front-end message types", "Protocol features".
"""

from typing import Final

from host.vhost_user import ring_control
from host.vhost_user.actions import DropMigration, Effects, EmitEvent, ReplaceMemory, SetBackendChannel, SetVringFile
from host.vhost_user.config_change import notify_config_change
from host.vhost_user.device_requests import reset_device
from host.vhost_user.session import Handling, MustClose, RefusedDriver, Session, u64_of
from protocol.errors import VhostUserError
from protocol.memory import RegionTable
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.virtio import LOG_ALL, PROTOCOL_FEATURES, FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import QUEUES_MAX, BalloonFeature, feature_bit_names, queue_order

_VERSION_1_ONLY: Final = feature_mask(FeatureBit.RING_PACKED, FeatureBit.IN_ORDER)
"""Features that a legacy driver cannot accept: its feature word has 32 bits (virtio 1.2, 2.2.3)."""


def set_owner(session: Session, message: Message) -> Effects:
    """SET_OWNER: a session begins.

    A further one while every ring is stopped begins another session on the same connection: QEMU keeps the connection
    of a character device when a device on it is removed and another one added (device_del, device_add). The protocol
    features and the back-end's channel stay, QEMU negotiates them anew before SET_OWNER (vhost_user_backend_init).
    """
    if not session.owned or any(vring.started for vring in session.vrings):
        session.owned = True
        return
    for vring in session.vrings:
        for request in (FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR):
            yield SetVringFile(request, vring.index, None)
    yield DropMigration()
    yield ReplaceMemory(RegionTable(), ())
    session.table = RegionTable()
    yield from reset_device(session, message)


def reset_owner(_session: Session, _message: Message) -> Effects:
    """RESET_OWNER: deprecated by the specification, which lets a back-end ignore it. No state is dropped."""
    yield from ()


def get_features(session: Session, _message: Message) -> Handling:
    """GET_FEATURES: what the device offers."""
    # When User Mode Linux removes its driver, it sends ENABLE 0 for each ring and asks for the features, to know that
    # these were handled; then it frees the rings. After losing bit 30 it sends the latter only.
    if session.lost_bit_30 and session.has_protocol_feature(ProtocolFeature.REPLY_ACK):
        yield from ring_control.halt_all(session)
    return session.offered


def set_features(session: Session, message: Message) -> Effects:
    """SET_FEATURES: what the driver accepts. It may come twice, the second time without bit 30.

    A legacy driver (virtio 1.2, 2.2.3) does not accept VERSION_1. On a little-endian machine its split rings are those
    of version 1: the layout that the legacy interface prescribes (2.7.2) is one of those that addresses can describe,
    and the balloon's fields and arrays are little-endian in both.
    """
    features = u64_of(message)
    session.features_accepted = False
    if unknown := features & ~session.offered:
        raise RefusedDriver(f"feature bits {unknown:#x} were not offered")
    newer = features & _VERSION_1_ONLY
    if newer and not has_feature(features, FeatureBit.VERSION_1):
        raise RefusedDriver(f"feature bits {newer:#x} were accepted without VERSION_1")
    # What runs has the old features' queue order and ring rules; and a bitmap that is written into memory has to be
    # written before the front-end begins to log.
    in_place = 0 if has_feature(features, BalloonFeature.DEVICE_INIT_ON_INFLATE) else LOG_ALL
    if (features ^ session.features) & ~in_place:
        yield from ring_control.pause_all(session)
    if queue_order(features) != queue_order(session.features):
        session.queue_numbers.forget()
    session.features = session.balloon.features = features
    session.features_accepted = True
    queues = [queue.value for queue in queue_order(features)]
    names = feature_bit_names(features)
    yield EmitEvent("features", {"negotiated": features, "feature_names": names, "queues": queues})
    if not features & PROTOCOL_FEATURES:
        # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled
        # state." User Mode Linux loses bit 30 on a second SET_FEATURES and then never enables a ring.
        for vring in session.vrings:
            if vring.resumes and not vring.enabled:
                yield from ring_control.halt(session, vring)  # its driver is gone, and the next one sets up its own
            vring.enabled = True
    yield from ring_control.run_wanted(session)
    yield from ring_control.relog(session)


def get_protocol_features(session: Session, _message: Message) -> Handling:
    """GET_PROTOCOL_FEATURES: what the back-end offers."""
    yield from ()
    return session.offered_protocol_features


def set_protocol_features(session: Session, message: Message) -> Effects:
    """SET_PROTOCOL_FEATURES: what the front-end accepts."""
    features = u64_of(message)
    if unknown := features & ~session.offered_protocol_features:
        raise VhostUserError(f"protocol feature bits {unknown:#x} were not offered")
    if has_feature(features, ProtocolFeature.INBAND_NOTIFICATIONS):
        needed = feature_mask(ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)
        if features & needed != needed:
            # "the back-end must close the connection": this message has no other way to report an error.
            raise MustClose("INBAND_NOTIFICATIONS without both BACKEND_REQ and REPLY_ACK")
    if has_feature(features, ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN):
        needed = feature_mask(ProtocolFeature.GET_VRING_BASE_INFLIGHT, ProtocolFeature.INFLIGHT_SHMFD)
        if features & needed != needed:
            raise VhostUserError("GET_VRING_BASE_SKIP_DRAIN without both GET_VRING_BASE_INFLIGHT and INFLIGHT_SHMFD")
    if features != session.protocol_features:
        yield from ring_control.pause_all(session)  # they were told whether their notifications are messages
    session.protocol_features = features
    yield from ring_control.run_wanted(session)


def get_queue_num(_session: Session, _message: Message) -> Handling:
    """GET_QUEUE_NUM: the most queues that a driver may ask for, independent of the offered features.

    Linux 7.2 asks its transport for all five queues and names those that exist. User Mode Linux refuses to probe the
    driver where the answer is smaller (arch/um/drivers/virtio_uml.c, vu_find_vqs).
    """
    yield from ()
    return QUEUES_MAX


def set_backend_req_fd(session: Session, message: Message) -> Effects:
    """SET_BACKEND_REQ_FD: the channel for the back-end's own requests."""
    yield SetBackendChannel(message.fds[0])
    session.has_backend_channel = True
    yield from notify_config_change(session)
