"""What the driver is told of changes: CONFIG_CHANGE_MSG, for a new configuration space and for DEVICE_NEEDS_RESET.

:func:`notify_config_change` is the one place that sends it. It is called after each change, and again by every message
that may make the notification possible: one that starts a ring, brings the back-end's channel or writes the status.

Source: vhost-user specification, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG"; virtio 1.2, 2.1.2 and 2.3.
"""

from collections.abc import Iterator
from dataclasses import replace

from host.vhost_user.actions import Effects, EmitEvent, SendBackendRequest
from host.vhost_user.session import Session
from protocol.vhost_user import BackendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.virtio import DeviceStatus, status_names


def change_config(session: Session, **fields: int) -> Iterator[SendBackendRequest]:
    """Set ``fields`` of the configuration space (names as in :class:`BalloonConfig`), and tell the driver.

    A stopped driver is told when its rings run again. Without a driver no notification is needed: the next one reads
    the fields when it starts.
    """
    session.balloon.config = replace(session.balloon.config, **fields)
    session.config_change_pending |= any(vring.address is not None for vring in session.vrings)
    yield from notify_config_change(session)


def notify_config_change(session: Session) -> Iterator[SendBackendRequest]:
    """Send CONFIG_CHANGE_MSG if the configuration space or the device status has changed since the driver was last
    told, and it can be told now."""
    if not session.can_notify_config_change:
        return
    # A ring that broke is still started. With all of them stopped the device is suspended, and sends nothing.
    config = session.config_change_pending and any(vring.running for vring in session.vrings)
    status = session.needs_reset_pending and session.has_driver_ok and any(vring.started for vring in session.vrings)
    if config or status:
        session.config_change_pending = False
        session.needs_reset_pending &= not status
        yield SendBackendRequest(build_message(BackendRequest.CONFIG_CHANGE_MSG))


def need_reset(session: Session) -> Effects:
    """Set DEVICE_NEEDS_RESET in the device status, and tell the driver.

    A front-end without the STATUS feature keeps a status of its own, and is told of the ring alone.
    """
    if session.status & DeviceStatus.DEVICE_NEEDS_RESET:
        return
    session.status |= DeviceStatus.DEVICE_NEEDS_RESET
    session.needs_reset_pending = True
    if session.has_protocol_feature(ProtocolFeature.STATUS):
        yield EmitEvent("status", {"status": int(session.status), "status_names": status_names(session.status)})
    yield from notify_config_change(session)
