"""The messages about the device as a whole: its status field and its reset.

Source: vhost-user specification, "Front-end message types"; virtio 1.2, 2.1 and 2.4.
"""

from typing import Final

from host.vhost_user.actions import Announce, Effects
from host.vhost_user.ring_control import RingControl
from host.vhost_user.session import Handler, Handling, Session, u64_of
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Message
from protocol.virtio import DeviceStatus

STATUS_MAX: Final = 0xFF
"""The device status field has 8 bits (virtio 1.2, 4.1.4.3)."""


class DeviceRequests:
    """Keeps the device status and resets the device.

    Nothing but the news of DEVICE_NEEDS_RESET waits for DRIVER_OK: QEMU's generic vhost-user device never sets it.
    """

    def __init__(self, session: Session, rings: RingControl) -> None:
        self._session = session
        self._rings = rings

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.SET_STATUS: self._set_status,
            FrontendRequest.GET_STATUS: self._get_status,
            FrontendRequest.RESET_DEVICE: self._reset_device,
        }

    def _get_status(self, _message: Message) -> Handling:
        yield from ()
        return self._session.status

    def _set_status(self, message: Message) -> Effects:
        status = u64_of(message)
        if status > STATUS_MAX:
            raise VhostUserError(f"device status {status:#x} has more than 8 bits")
        session = self._session
        if status == 0:
            yield from self._reset_device(message)
        elif session.features_refused or not session.features:
            # virtio 1.2, 3.1.1: the driver reads the status again to see whether the device takes its features.
            status &= ~DeviceStatus.FEATURES_OK
        session.status = status | session.status & DeviceStatus.DEVICE_NEEDS_RESET  # which only a reset clears
        yield Announce("status", {"status": int(session.status)})
        yield from self._rings.tell_news()

    def _reset_device(self, _message: Message) -> Effects:
        # What the front-end itself said stays: owner, memory, protocol features, the back-end's channel.
        yield from self._rings.pause_all()
        session = self._session
        for vring in session.vrings:
            vring.reset()
        session.queue_numbers.forget()
        session.features = session.status = 0
        session.features_refused = session.config_news = session.status_news = False
        session.balloon.reset()
        yield Announce("reset", {})
