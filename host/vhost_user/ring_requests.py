"""The messages about one ring.

Source: vhost-user specification, "Front-end message types", "Ring states".
"""

from collections.abc import Generator

from host.vhost_user.actions import Action, Effects, KickRing, SetVringFile
from host.vhost_user.ring_control import RingControl
from host.vhost_user.session import Handler, Handling, Session, vring_state_of
from host.vhost_user.vring import Vring
from protocol.errors import VhostUserError
from protocol.packed_ring import FRESH_BASE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import VringAddress, VringFile, VringState


class RingRequests:
    """Collects what the front-end says about each ring, and starts and stops the ring accordingly."""

    def __init__(self, session: Session, rings: RingControl) -> None:
        self._session = session
        self._rings = rings

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.SET_VRING_NUM: self._set_vring_num,
            FrontendRequest.SET_VRING_ADDR: self._set_vring_addr,
            FrontendRequest.SET_VRING_BASE: self._set_vring_base,
            FrontendRequest.GET_VRING_BASE: self._get_vring_base,
            FrontendRequest.SET_VRING_KICK: self._set_vring_kick,
            FrontendRequest.SET_VRING_CALL: self._set_vring_file,
            FrontendRequest.SET_VRING_ERR: self._set_vring_file,
            FrontendRequest.SET_VRING_ENABLE: self._set_vring_enable,
            FrontendRequest.VRING_KICK: self._vring_kick,
        }

    def _set_vring_num(self, message: Message) -> Effects:
        state = vring_state_of(message)
        vring = self._session.vring(state.index)
        vring.set_size(state.num, packed=self._session.packed)
        yield from self._rings.halt(vring)

    def _set_vring_base(self, message: Message) -> Effects:
        state = vring_state_of(message)
        vring = self._session.vring(state.index)
        yield from self._rings.halt(vring)
        vring.base = state.num
        # A driver that goes on has read the configuration space long ago, perhaps from another back-end.
        self._session.config_news |= state.num not in (0, FRESH_BASE)

    def _get_vring_base(self, message: Message) -> Handling:
        vring = self._session.vring(vring_state_of(message).index)
        yield from self._rings.halt(vring)
        vring.told_place = False
        yield SetVringFile(FrontendRequest.SET_VRING_KICK, vring.index, None)
        yield SetVringFile(FrontendRequest.SET_VRING_CALL, vring.index, None)
        return VringState(vring.index, self._rings.base_of(vring))

    def _set_vring_addr(self, message: Message) -> Effects:
        assert isinstance(message.payload, VringAddress)
        vring = self._session.vring(message.payload.index)
        if vring.started and vring.is_at(message.payload):
            vring.address = message.payload  # only dirty logging was switched
            yield from self._rings.relog()
            return
        vring.set_address(message.payload, self._session.table, packed=self._session.packed)
        yield from self._rings.halt(vring)
        if vring.enabled:  # without bit 30 every ring is, and no message to enable it will come
            self._start_inband(vring)
            yield from self._rings.run_wanted(vring)

    def _set_vring_kick(self, message: Message) -> Effects:
        vring = yield from self._change_file(message)
        self._start(vring)
        vring.broken = False
        yield from self._rings.run_wanted(vring)

    def _start_inband(self, vring: Vring) -> None:
        # Without a kick descriptor nothing more is said of a ring until its first kick. Linux never kicks a queue that
        # it has nothing to put on, and waits there for a change of the configuration space, which may be sent only
        # while a ring runs.
        inband = self._session.has_protocol_feature(ProtocolFeature.INBAND_NOTIFICATIONS)
        if inband and vring.is_set_up and not vring.started:
            self._start(vring)

    @staticmethod
    def _start(vring: Vring) -> None:
        vring.started, vring.resumes, vring.told_place = True, False, True

    def _vring_kick(self, message: Message) -> Effects:
        # A ring that is disabled or parked is looked at when it goes on, so no kick is kept for it.
        vring = self._session.vring(vring_state_of(message).index)
        if vring.running:
            yield KickRing(vring.index)
        elif not vring.started and vring.size > 0 and vring.address is not None:
            self._start(vring)
            yield from self._rings.run_wanted(vring)

    def _set_vring_file(self, message: Message) -> Effects:
        yield from self._change_file(message)
        yield from self._rings.run_wanted()

    def _change_file(self, message: Message) -> Generator[Action, int | None, Vring]:
        # No worker may be using the old descriptor while it is closed. A completion may have been signalled on the old
        # call descriptor and not been seen, even long ago if the ring is paused or parked, hence the new one is
        # signalled once when the ring goes on.
        assert isinstance(message.request, FrontendRequest)
        assert isinstance(message.payload, VringFile)
        vring = self._session.vring(message.payload.index)
        has_served = vring.running or (vring.started and vring.resumes)
        vring.signal_first |= has_served and message.request is FrontendRequest.SET_VRING_CALL
        yield from self._rings.pause(vring)
        try:
            yield SetVringFile(message.request, vring.index, message.fds[0] if message.fds else None)
        except VhostUserError:
            yield from self._rings.run_wanted()  # with the old descriptor, which stays
            raise
        return vring

    def _set_vring_enable(self, message: Message) -> Effects:
        state = vring_state_of(message)
        vring = self._session.vring(state.index)
        if state.num > 1:
            raise VhostUserError(f"SET_VRING_ENABLE with {state.num}, which is neither 0 nor 1")
        vring.enabled = state.num == 1
        if not vring.enabled:
            yield from self._rings.pause(vring)
        else:
            self._start_inband(vring)
        yield from self._rings.run_wanted(vring)
