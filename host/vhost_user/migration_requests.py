"""The messages that let a virtual machine move, or outlive its back-end: dirty log, inflight file, device state.

Source: vhost-user specification, "Migration", "Inflight I/O tracking", "Migrating back-end state".
"""

from typing import Final

from host.inflight.inflight import check_description, describe_file
from host.vhost_user.actions import (
    Effects,
    FinishState,
    LoadState,
    MakeInflightFile,
    SaveState,
    SetInflightFile,
    SetLog,
    SetLogFile,
)
from host.vhost_user.ring_control import RingControl
from host.vhost_user.session import Answer, Handler, Handling, Session
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import (
    DEVICE_STATE_LOAD,
    DEVICE_STATE_NO_FD,
    DEVICE_STATE_SAVE,
    DEVICE_STATE_STOPPED,
    DeviceStateTransfer,
    InflightDescription,
    LogDescription,
    Payload,
)

_NO_INFLIGHT: Final = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=0, queue_size=0)

REFUSALS: Final[dict[int, Payload]] = {
    FrontendRequest.SET_LOG_BASE: 1,
    FrontendRequest.GET_INFLIGHT_FD: _NO_INFLIGHT,
    FrontendRequest.SET_DEVICE_STATE_FD: DEVICE_STATE_NO_FD | 1,
    FrontendRequest.CHECK_DEVICE_STATE: 1,
}
"""How the own replies of these requests say that the request failed."""


class MigrationRequests:
    """Takes what the front-end gives and hands out what it keeps for the next back-end."""

    def __init__(self, session: Session, rings: RingControl) -> None:
        self._session = session
        self._rings = rings

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.SET_LOG_BASE: self._set_log_base,
            FrontendRequest.SET_LOG_FD: self._set_log_fd,
            FrontendRequest.GET_INFLIGHT_FD: self._get_inflight_fd,
            FrontendRequest.SET_INFLIGHT_FD: self._set_inflight_fd,
            FrontendRequest.SET_DEVICE_STATE_FD: self._set_device_state_fd,
            FrontendRequest.CHECK_DEVICE_STATE: self._check_device_state,
        }

    # -- the dirty log ----------------------------------------------------------------------------------------------

    def _set_log_base(self, message: Message) -> Handling:
        assert isinstance(message.payload, LogDescription)
        yield SetLog(message.fds[0], message.payload.size, message.payload.offset)
        return 0

    def _set_log_fd(self, message: Message) -> Effects:
        # No worker may be using the old descriptor while it is closed.
        yield from self._rings.pause_all()
        try:
            yield SetLogFile(message.fds[0])
        except VhostUserError:
            yield from self._rings.run_wanted()  # with the old descriptor, which stays
            raise
        yield from self._rings.run_wanted()

    # -- the inflight file ------------------------------------------------------------------------------------------

    def _get_inflight_fd(self, message: Message) -> Handling:
        assert isinstance(message.payload, InflightDescription)
        wanted = message.payload
        description = describe_file(wanted.num_queues, wanted.queue_size, packed=self._session.packed)
        fd = yield MakeInflightFile(description.mmap_size)
        assert fd is not None
        return Answer(description, (fd,))

    def _set_inflight_fd(self, message: Message) -> Effects:
        assert isinstance(message.payload, InflightDescription)
        packed = self._session.packed
        check_description(message.payload, packed=packed)
        yield from self._rings.pause_all()
        try:
            yield SetInflightFile(message.fds[0], message.payload, packed)
        except VhostUserError:
            yield from self._rings.run_wanted()  # with the old file, which stays
            raise
        for vring in self._session.vrings:
            vring.recovers = True
        yield from self._rings.run_wanted()

    # -- the device's own state -------------------------------------------------------------------------------------

    def _set_device_state_fd(self, message: Message) -> Handling:
        assert isinstance(message.payload, DeviceStateTransfer)
        direction, phase = message.payload.direction, message.payload.phase
        if direction not in (DEVICE_STATE_SAVE, DEVICE_STATE_LOAD) or phase != DEVICE_STATE_STOPPED:
            raise VhostUserError(f"a device state is not passed in direction {direction} in phase {phase}")
        if any(vring.started for vring in self._session.vrings):
            raise VhostUserError("a device state is passed only while every ring is stopped")
        yield (SaveState if direction == DEVICE_STATE_SAVE else LoadState)(message.fds[0])
        return DEVICE_STATE_NO_FD

    def _check_device_state(self, _message: Message) -> Handling:
        if any(vring.started for vring in self._session.vrings):
            raise VhostUserError("a device state is passed only while every ring is stopped")
        yield FinishState()
        return 0
