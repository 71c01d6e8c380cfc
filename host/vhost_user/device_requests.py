"""The messages about the device as a whole: its status field and its reset.

Source: vhost-user specification, "Front-end message types"; virtio 1.2, 2.1 and 2.4.
"""

from typing import Final

from host.vhost_user import ring_control
from host.vhost_user.actions import Effects, EmitEvent, ForgetDriver
from host.vhost_user.config_change import notify_config_change
from host.vhost_user.session import Handling, Session, u64_of
from protocol.errors import VhostUserError
from protocol.vhost_user_codec import Message
from protocol.virtio import DeviceStatus, status_names

STATUS_MAX: Final = 0xFF
"""The device status field has 8 bits (virtio 1.2, 4.1.4.3)."""


def get_status(session: Session, _message: Message) -> Handling:
    """GET_STATUS: the device status."""
    yield from ()
    return session.status


def set_status(session: Session, message: Message) -> Effects:
    """SET_STATUS: the device status as the driver wrote it.

    DRIVER_OK is waited for only before the driver is told of DEVICE_NEEDS_RESET: QEMU's generic vhost-user device never
    sets it.
    """
    status = u64_of(message)
    if status > STATUS_MAX:
        raise VhostUserError(f"device status {status:#x} has more than 8 bits")
    if status == 0:
        yield from reset_device(session, message)
    elif not session.features_accepted:
        # virtio 1.2, 3.1.1: the driver reads the status again to see whether the device takes its features.
        status &= ~DeviceStatus.FEATURES_OK
    session.status = status | session.status & DeviceStatus.DEVICE_NEEDS_RESET  # which only a reset clears
    yield EmitEvent("status", {"status": int(session.status), "status_names": status_names(session.status)})
    yield from notify_config_change(session)


def reset_device(session: Session, _message: Message) -> Effects:
    """RESET_DEVICE: forget the driver's settings.

    The front-end's own settings stay: owner, memory, protocol features, the back-end's channel.
    """
    yield from ring_control.pause_all(session)
    for vring in session.vrings:
        vring.reset()
    session.queue_numbers.forget()
    session.features = session.status = 0
    session.features_accepted = session.config_change_pending = session.needs_reset_pending = False
    session.balloon.reset()
    yield ForgetDriver()
    yield EmitEvent("reset", {})
