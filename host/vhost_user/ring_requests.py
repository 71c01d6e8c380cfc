"""The messages about one ring.

Source: vhost-user specification, "Front-end message types", "Ring states".
"""

from collections.abc import Generator

from host.vhost_user import ring_control
from host.vhost_user.actions import Action, ActionResult, Effects, KickRing, SetVringFile
from host.vhost_user.session import Handling, Session, vring_state_of
from host.vhost_user.vring import RingEvent, Vring
from protocol.errors import VhostUserError
from protocol.packed_ring import FRESH_BASE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import VringAddress, VringFile, VringState


def set_vring_num(session: Session, message: Message) -> Effects:
    """SET_VRING_NUM: the size of a ring."""
    state = vring_state_of(message)
    vring = session.vring(state.index)
    vring.set_size(state.num, packed=session.packed)
    yield from ring_control.halt(session, vring)


def set_vring_base(session: Session, message: Message) -> Effects:
    """SET_VRING_BASE: where a ring goes on."""
    state = vring_state_of(message)
    vring = session.vring(state.index)
    yield from ring_control.halt(session, vring)
    vring.base = state.num
    # A driver that goes on has read the configuration space long ago, perhaps from another back-end.
    session.config_change_pending |= state.num not in (0, FRESH_BASE)


def get_vring_base(session: Session, message: Message) -> Handling:
    """GET_VRING_BASE, GET_VRING_BASE_SKIP_DRAIN: stop a ring and return where it stands.

    The second one does not wait for the chain in hand, and so did the first where GET_VRING_BASE_INFLIGHT was the only
    feature about it (QEMU 11.0 and 11.1). Then the chain is as if it had not been taken.
    """
    vring = session.vring(vring_state_of(message).index)
    skips = message.request == FrontendRequest.GET_VRING_BASE_SKIP_DRAIN or (
        session.has_protocol_feature(ProtocolFeature.GET_VRING_BASE_INFLIGHT)
        and not session.has_protocol_feature(ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN)
    )
    yield from ring_control.halt(session, vring, drain=not skips)
    vring.address_set = False
    yield SetVringFile(FrontendRequest.SET_VRING_KICK, vring.index, None)
    yield SetVringFile(FrontendRequest.SET_VRING_CALL, vring.index, None)
    return VringState(vring.index, ring_control.base_of(session, vring))


def set_vring_addr(session: Session, message: Message) -> Effects:
    """SET_VRING_ADDR: where the parts of a ring lie."""
    assert isinstance(message.payload, VringAddress)
    vring = session.vring(message.payload.index)
    if vring.started and vring.is_at(message.payload):
        vring.address = message.payload  # only dirty logging was switched
        yield from ring_control.relog(session)
        return
    vring.set_address(message.payload, session.table, packed=session.packed)
    yield from ring_control.halt(session, vring)
    if vring.enabled:  # without bit 30 every ring is enabled, without a message
        yield from _start_inband(session, vring)
        yield from ring_control.run_wanted(session, vring)


def set_vring_kick(session: Session, message: Message) -> Effects:
    """SET_VRING_KICK: the kick descriptor, which starts a ring."""
    vring = yield from _change_file(session, message)
    yield from _start(session, vring)
    yield from ring_control.run_wanted(session, vring)


def _start_inband(session: Session, vring: Vring) -> Effects:
    # Without a kick descriptor the next message about a ring is its first kick. Linux does not kick an empty queue,
    # and waits there for a change of the configuration space, which may be sent only while a ring runs.
    inband = session.has_protocol_feature(ProtocolFeature.INBAND_NOTIFICATIONS)
    if inband and vring.is_set_up and not vring.started:
        yield from _start(session, vring)


def _start(session: Session, vring: Vring) -> Effects:
    yield from ring_control.note_start(session, vring)
    vring.move(RingEvent.START)
    vring.resumes, vring.address_set = False, True


def vring_kick(session: Session, message: Message) -> Effects:
    """VRING_KICK: an in-band kick. The first one starts a ring."""
    # A ring that is disabled or parked is looked at when it goes on, so no kick is kept for it.
    vring = session.vring(vring_state_of(message).index)
    if vring.running:
        yield KickRing(vring.index)
    elif not vring.started and vring.size > 0 and vring.address is not None:
        yield from _start(session, vring)
        yield from ring_control.run_wanted(session, vring)


def set_vring_file(session: Session, message: Message) -> Effects:
    """SET_VRING_CALL, SET_VRING_ERR: the descriptors that interrupt the driver and report a broken ring."""
    yield from _change_file(session, message)
    yield from ring_control.run_wanted(session)


def _change_file(session: Session, message: Message) -> Generator[Action, ActionResult, Vring]:
    # A worker must not use the old descriptor while it is closed. A completion may have been signalled on the old call
    # descriptor unseen, even long ago if the ring is paused or parked, so the new one is signalled once when the ring
    # goes on.
    assert isinstance(message.request, FrontendRequest)
    assert isinstance(message.payload, VringFile)
    vring = session.vring(message.payload.index)
    has_served = vring.running or (vring.started and vring.resumes)
    vring.signal_first |= has_served and message.request is FrontendRequest.SET_VRING_CALL
    yield from ring_control.pause(session, vring)
    try:
        yield SetVringFile(message.request, vring.index, message.fds[0] if message.fds else None)
    except VhostUserError:
        yield from ring_control.run_wanted(session)  # with the old descriptor, which stays
        raise
    return vring


def set_vring_enable(session: Session, message: Message) -> Effects:
    """SET_VRING_ENABLE: whether a started ring is served."""
    state = vring_state_of(message)
    vring = session.vring(state.index)
    if state.num > 1:
        raise VhostUserError(f"SET_VRING_ENABLE with {state.num}, which is neither 0 nor 1")
    vring.enabled = state.num == 1
    if not vring.enabled:
        yield from ring_control.suspend(session, vring)
        if session.is_quiet:
            session.balloon.driver_left()  # the last message of Cloud Hypervisor about a driver that has gone
    else:
        yield from _start_inband(session, vring)
    yield from ring_control.run_wanted(session, vring)
