"""Kicks and interrupts as messages, and notifications of a changed configuration."""

import pytest

from host.vhost_user.session import MustClose
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from tests.pair.session import BIT_30, FEATURES, PROTOCOL_FEATURES, REGION, Shell, negotiated, set_up
from tests.protocol.messages import raw

INBAND, BACKEND_REQ, REPLY_ACK = 1 << 14, 1 << 5, 1 << 3
CONFIG_CHANGE = raw(2, flags=0x1)


def inband(*, bit_30: bool = True) -> Shell:
    shell = Shell()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | INBAND) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES if bit_30 else FEATURES & ~BIT_30) == 0
    assert shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,)) == 0
    assert shell.memory(REGION) == 0
    shell.take_done()
    return shell


def configure(shell: Shell, index: int) -> None:
    shell.ring("NUM", index, 256)
    shell.ring("BASE", index, 0)
    shell.ring("ADDR", index)
    shell.ring("ENABLE", index, 1)


def kick(shell: Shell, index: int) -> object:
    return shell.ask(FrontendRequest.VRING_KICK, VringState(index, 0))


@pytest.mark.parametrize("missing", [BACKEND_REQ, REPLY_ACK, BACKEND_REQ | REPLY_ACK])
def test_inband_notifications_without_their_foundations_end_the_session(missing: int) -> None:
    shell = negotiated()
    with pytest.raises(MustClose, match="INBAND_NOTIFICATIONS without both"):
        shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, (PROTOCOL_FEATURES | INBAND) & ~missing)
    assert shell.take_done() == ["message_refused SET_PROTOCOL_FEATURES"]
    assert shell.session.protocol_features == PROTOCOL_FEATURES


def test_ring_without_a_kick_descriptor_starts_when_it_is_enabled_and_takes_kicks() -> None:
    # Linux kicks the queues of free page hinting only when the configuration space told it to, and inflates only then.
    shell = inband()
    configure(shell, 2)
    assert shell.take_done() == ["start 2 reporting at 0"]
    assert shell.change_config(num_pages=3) == CONFIG_CHANGE
    assert shell.running[2].inband
    assert (kick(shell, 2), kick(shell, 2)) == (0, 0)
    assert shell.take_done() == ["kick ring 2", "kick ring 2"]


def test_ring_that_is_enabled_before_it_has_a_place_starts_when_it_has_one() -> None:
    # User Mode Linux that has lost bit 30: SET_FEATURES enabled all rings, SET_VRING_ENABLE never comes.
    shell = inband(bit_30=False)
    shell.ring("NUM", 2, 256)
    shell.ring("BASE", 2, 0)
    assert shell.take_done() == []
    shell.ring("ADDR", 2)
    assert shell.take_done() == ["start 2 reporting at 0"]
    assert kick(shell, 2) == 0
    assert shell.take_done() == ["kick ring 2"]


def test_kick_by_message_for_a_ring_that_is_not_configured_is_passed_over() -> None:
    shell = inband()
    assert kick(shell, 2) == 0
    assert shell.take_done() == []
    assert kick(shell, 5) == 1


def test_kick_by_message_waits_for_a_disabled_ring() -> None:
    shell = inband()
    configure(shell, 2)
    kick(shell, 2)
    shell.ring("ENABLE", 2, 0)
    shell.take_done()
    assert kick(shell, 2) == 0
    assert shell.take_done() == []
    shell.ring("ENABLE", 2, 1)
    assert shell.take_done() == ["start 2 reporting at 0"]


def test_kick_by_message_does_not_revive_a_broken_ring() -> None:
    shell = inband()
    configure(shell, 2)
    kick(shell, 2)
    shell.ring_broke(2)
    shell.take_done()
    assert kick(shell, 2) == 0
    assert shell.take_done() == []
    configure(shell, 2)
    assert shell.take_done() == ["start 2 reporting at 0"]


def test_driver_that_has_not_kicked_yet_is_told_of_a_new_target() -> None:
    shell = inband()
    assert shell.change_config(num_pages=1) is None
    configure(shell, 0)
    assert shell.change_config(num_pages=2) is not None
    shell.ring("ENABLE", 0, 0)
    assert shell.change_config(num_pages=3) is None


def test_ring_without_descriptors_is_only_polled_if_notifications_are_not_messages() -> None:
    for shell, polled in ((negotiated(), True), (inband(), False)):
        configure(shell, 2)
        shell.ring("KICK", 2, None)
        assert shell.running[2].inband is not polled


def test_changed_protocol_features_reach_the_rings_that_run() -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | INBAND) == 0
    assert shell.take_done() == ["stop 2", "start 2 reporting at 0"]
    assert shell.running[2].inband
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | INBAND) == 0
    assert shell.take_done() == []


# -- the configuration space has changed -------------------------------------------------------------------------------


def listening() -> Shell:
    shell = negotiated()
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    set_up(shell, 0)
    return shell


def test_change_while_the_driver_is_paused_is_told_when_it_goes_on() -> None:
    shell = listening()
    shell.ring("ENABLE", 0, 0)
    assert shell.change_config(num_pages=1) is None
    assert shell.change_config(num_pages=2) is None
    shell.take_done()
    shell.ring("ENABLE", 0, 1)
    assert shell.take_done() == ["start 0 inflate at 0", f"send {CONFIG_CHANGE.hex()}"]
    shell.ring("ENABLE", 0, 0)
    shell.ring("ENABLE", 0, 1)
    assert shell.take_done() == ["stop 0", "start 0 inflate at 0"]


@pytest.mark.parametrize("first", ["change", "stop"])
def test_driver_that_was_stopped_is_told_of_a_change_when_it_goes_on(first: str) -> None:
    shell = listening()
    shell.base[0] = 5
    if first == "change":
        shell.ring("ENABLE", 0, 0)
        assert shell.change_config(num_pages=1) is None
    shell.ask(FrontendRequest.GET_VRING_BASE, VringState(0, 0))
    if first == "stop":
        assert shell.change_config(num_pages=1) is None
    shell.take_done()
    shell.ring("ENABLE", 0, 1)
    shell.ring("KICK", 0, 8)
    assert shell.take_done()[-2:] == ["start 0 inflate at 5", f"send {CONFIG_CHANGE.hex()}"]
    assert not shell.session.config_change_pending


def test_driver_that_goes_on_with_another_back_end_gets_its_target() -> None:
    shell = listening()
    shell.ring("BASE", 0, 5)
    shell.take_done()
    shell.ring("KICK", 0, 8)
    assert shell.take_done()[-2:] == ["start 0 inflate at 5", f"send {CONFIG_CHANGE.hex()}"]
    shell.ring("BASE", 0, 0)
    shell.ring("KICK", 0, 8)
    assert shell.take_done()[-1] == "start 0 inflate at 0"


def test_change_before_a_reset_is_not_told_to_the_next_driver() -> None:
    shell = listening()
    shell.ring("ENABLE", 0, 0)
    assert shell.change_config(num_pages=1) is None
    shell.ask(FrontendRequest.RESET_DEVICE)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    assert shell.change_config(num_pages=2) is None
    set_up(shell, 0)
    assert not shell.session.config_change_pending
    assert shell.change_config(num_pages=3) == CONFIG_CHANGE


def test_change_is_told_only_with_the_config_feature() -> None:
    shell = Shell()
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES & ~(1 << 9))
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    shell.memory(REGION)
    set_up(shell, 0)
    assert shell.change_config(num_pages=1) is None
    shell.ring("ENABLE", 0, 0)
    shell.take_done()
    shell.ring("ENABLE", 0, 1)
    assert shell.take_done() == ["start 0 inflate at 0"]
