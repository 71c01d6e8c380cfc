"""Sessions of arbitrary messages: the rules that hold after any sequence of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.balloon.offered_features import OFFERED
from host.vhost_user.session import OFFERED_PROTOCOL_FEATURES, MustClose
from host.vhost_user.vring import RingState
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import MemoryTable, Payload, VringFile, VringState
from protocol.virtio import DeviceStatus
from protocol.virtio_balloon import queue_order
from tests.pair.session import REGION, Shell, negotiated, ring_address, set_up
from tests.protocol.messages import fd_count, payload_of


@st.composite
def messages(draw: st.DrawFn) -> tuple[FrontendRequest, bytes, tuple[int, ...]]:
    """Any message that is well-formed, most of them about queues that exist."""
    request = draw(st.sampled_from(FrontendRequest))
    payload = draw(payload_of(request))
    if isinstance(payload, VringState):
        payload = VringState(draw(st.integers(0, 5)), draw(st.sampled_from([0, 1, 2, 256, 65535])))
    elif isinstance(payload, VringFile):
        payload = VringFile(draw(st.integers(0, 5)), payload.has_file)
    elif isinstance(payload, MemoryTable) and draw(st.booleans()):
        payload = MemoryTable((REGION,))
    data = build_message(request, payload, need_reply=draw(st.booleans()))
    return request, data, tuple(range(200, 200 + fd_count(request, payload)))


EVERYTHING = OFFERED | 1 << 1 | 1 << 3 | 1 << 4


def shell_of_everything() -> Shell:
    """Return a shell whose session may use everything there is."""
    shell = Shell(EVERYTHING)
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, OFFERED_PROTOCOL_FEATURES) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, EVERYTHING) == 0
    assert shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,)) == 0
    assert shell.memory(REGION) == 0
    return shell


@st.composite
def telling_messages(draw: st.DrawFn) -> tuple[FrontendRequest, bytes, tuple[int, ...]]:
    """Messages most of which change something: what is negotiated, the status, which rings there are."""
    request = draw(
        st.sampled_from(
            [
                *[FrontendRequest[f"SET_VRING_{name}"] for name in ("NUM", "ADDR", "KICK", "CALL", "ENABLE")],
                FrontendRequest.VRING_KICK,
                FrontendRequest.GET_VRING_BASE,
                FrontendRequest.SET_FEATURES,
                FrontendRequest.GET_FEATURES,
                FrontendRequest.SET_STATUS,
                FrontendRequest.RESET_DEVICE,
            ]
        )
    )
    index = draw(st.integers(0, 4))
    payload: Payload = None
    match request:
        case FrontendRequest.SET_VRING_ADDR:
            payload = ring_address(index)
        case FrontendRequest.SET_VRING_KICK | FrontendRequest.SET_VRING_CALL:
            payload = VringFile(index, draw(st.booleans()))
        case FrontendRequest.SET_FEATURES:
            taken_away = draw(st.sets(st.sampled_from([1, 3, 5, 29, 30])))
            payload = EVERYTHING & ~sum(1 << bit for bit in taken_away)
        case FrontendRequest.SET_STATUS:
            payload = draw(st.sampled_from([0, 1, 11, 15]))
        case FrontendRequest.GET_FEATURES | FrontendRequest.RESET_DEVICE:
            pass
        case FrontendRequest.SET_VRING_NUM:
            payload = VringState(index, 256)
        case _:
            payload = VringState(index, draw(st.integers(0, 1)))
    return (
        request,
        build_message(request, payload, need_reply=True),
        tuple(range(200, 200 + fd_count(request, payload))),
    )


@pytest.mark.long
@given(session=st.lists(telling_messages() | st.integers(-5, 4), max_size=60), breaking=st.sets(st.integers(0, 4)))
@settings(max_examples=150)
def test_rings_of_any_session_have_roles_of_their_own_and_stopped_ones_are_left_alone(
    session: list[tuple[FrontendRequest, bytes, tuple[int, ...]] | int], breaking: set[int]
) -> None:
    """A bare number is a change of the configuration space, one below 0 a ring that its driver breaks; ``breaking`` are
    found broken when they are stopped. The shell checks: nothing is sent while all are stopped."""
    shell = shell_of_everything()
    shell.breaking = breaking
    for step in session:
        if isinstance(step, int) and step < 0:
            if shell.session.vrings[step].running:
                shell.ring_broke(shell.session.vrings[step].index)
                assert shell.session.status & DeviceStatus.DEVICE_NEEDS_RESET
            continue
        if isinstance(step, int):
            assert (shell.change_config(num_pages=step) is not None) == bool(shell.running)
            continue
        request, data, fds = step
        needed_reset = shell.session.status & DeviceStatus.DEVICE_NEEDS_RESET
        shell.take_done()
        shell.receive(data, fds)
        was_reset = "reset" in shell.take_done()
        needs_reset = shell.session.status & DeviceStatus.DEVICE_NEEDS_RESET
        assert needs_reset == (0 if was_reset else needed_reset) or (needs_reset and breaking)
        roles = [ring.queue for ring in shell.running.values()]
        assert len(set(roles)) == len(roles)
        assert set(roles) <= set(queue_order(shell.session.features))
        if request is FrontendRequest.RESET_DEVICE or (request is FrontendRequest.GET_FEATURES and lost_bit_30(shell)):
            assert not shell.running


def test_ring_that_is_found_broken_when_its_role_becomes_known_stays_stopped() -> None:
    """It ran without a role, and is stopped to begin with one."""
    shell = shell_of_everything()
    assert shell.ask(FrontendRequest.SET_FEATURES, EVERYTHING & ~(1 << 1)) == 0  # no statistics: queue 4 is no queue
    for index in (0, 1, 2, 4):
        set_up(shell, index)
    assert shell.running[4].queue is None
    shell.breaking = {4}
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 0)
    shell.ring("CALL", 0, 30)
    assert 4 not in shell.running
    assert shell.session.vrings[4].state is RingState.BROKEN
    assert shell.ring("ENABLE", 4, 1) == 0
    assert set(shell.running) == {0, 1}


def lost_bit_30(shell: Shell) -> bool:
    return shell.session.features != 0 and not shell.session.features & 1 << 30


@pytest.mark.long
@given(session=st.lists(messages(), max_size=30))
@settings(max_examples=150)
def test_session_of_well_formed_messages_keeps_the_rules_of_the_shell(
    session: list[tuple[FrontendRequest, bytes, tuple[int, ...]]],
) -> None:
    # The shell of the tests checks: no ring is started twice or stopped without running, none runs while its memory or
    # its descriptors change.
    shell = negotiated()
    for index in range(3):
        set_up(shell, index)
    for _, data, fds in session:
        try:
            shell.receive(data, fds)
        except MustClose:
            return
        assert set(shell.running) == {vring.index for vring in shell.session.vrings if vring.running}
        assert all(vring.is_wanted for vring in shell.session.vrings if vring.running)
