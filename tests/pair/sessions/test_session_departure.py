"""Drivers that go without a word, as User Mode Linux has them, and those that number their queues in their own way."""

import pytest

from host.vhost_user.actions import EmitEvent
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from tests.pair.session import BIT_30, FEATURES, PROTOCOL_FEATURES, REGION, Shell, negotiated, ring_address, set_up

REPLY_ACK = 1 << 3
STATS, HINT, REPORTING = 1 << 1, 1 << 3, 1 << 5


def lost_bit_30() -> Shell:
    shell = negotiated()
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~BIT_30) == 0
    shell.take_done()
    return shell


def test_get_features_without_bit_30_is_the_end_of_a_driver() -> None:
    """What User Mode Linux does before it frees the rings; without the bit it sends no ENABLE 0."""
    shell = lost_bit_30()
    set_up(shell, 0)
    set_up(shell, 2)
    shell.base[2] = 5
    shell.ask(FrontendRequest.GET_FEATURES)
    assert shell.take_done() == ["stop 0", "stop 2"]
    assert shell.memory(REGION) == 0
    shell.ring("CALL", 2, 22)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~BIT_30)
    assert not shell.running
    set_up(shell, 2)
    assert (shell.running[2].base, shell.running[2].resumes) == (0, False)


@pytest.mark.parametrize("bits", [FEATURES, FEATURES & ~BIT_30])
def test_get_features_is_otherwise_only_a_question(bits: int) -> None:
    shell = Shell()
    # With bit 30, or without acknowledgements: QEMU then uses the question to wait for its earlier messages.
    protocol_features = PROTOCOL_FEATURES if bits & BIT_30 else PROTOCOL_FEATURES & ~REPLY_ACK
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, protocol_features)
    shell.ask(FrontendRequest.SET_FEATURES, bits)
    shell.memory(REGION)
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 12), ("ENABLE", 1)):
        shell.ring(name, 2, value)
    shell.take_done()
    shell.ask(FrontendRequest.GET_FEATURES)
    assert shell.take_done() == []
    assert 2 in shell.running


def test_bit_30_taken_back_does_not_start_the_rings_of_an_earlier_driver() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.ring("ENABLE", 2, 0)
    shell.ask(FrontendRequest.GET_FEATURES)
    shell.take_done()
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~BIT_30)
    assert not shell.running
    set_up(shell, 2)


@pytest.mark.parametrize(
    "after",
    [
        lambda shell: shell.memory(REGION),
        lambda shell: shell.ring("CALL", 2, 30),
        lambda shell: shell.ring("ERR", 2, 30),
        lambda shell: shell.ring("KICK", 2, 30),
        lambda shell: shell.ask(FrontendRequest.SET_FEATURES, FEATURES),
        lambda shell: shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | 1 << 16),
        lambda shell: shell.change_config(num_pages=5),
    ],
)
def test_disabled_ring_is_not_touched_by_any_message(after: object) -> None:
    shell = negotiated()
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    set_up(shell, 2)
    shell.ring("ENABLE", 2, 0)
    assert callable(after)
    assert after(shell) in (0, None)
    assert not shell.running


# -- queue numbers -----------------------------------------------------------------------------------------------------


def numbered(offered: int, negotiated: int, queue_numbers: str = "auto") -> Shell:
    base = FEATURES & ~REPORTING
    shell = Shell(base | offered, queue_numbers)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    assert shell.ask(FrontendRequest.SET_FEATURES, base | negotiated) == 0
    shell.memory(REGION)
    shell.take_done()
    return shell


def set_up_as_qemu(shell: Shell, *indices: int) -> None:
    """QEMU describes the rings that the guest has set up, and enables all it was told of."""
    for index in indices:
        for name, value in (("NUM", 256), ("BASE", 0), ("ADDR", None), ("KICK", 10 + index), ("CALL", 20 + index)):
            shell.ring(name, index, value)
    for index in range(5):
        assert shell.ring("ENABLE", index, 1) == 0


def roles(shell: Shell) -> dict[int, str | None]:
    return {index: None if ring.queue is None else ring.queue.value for index, ring in sorted(shell.running.items())}


@pytest.mark.parametrize("stats", [0, STATS])
@pytest.mark.parametrize("hint", [0, HINT])
def test_linux_numbers_what_it_negotiated_one_after_another(stats: int, hint: int) -> None:
    shell = numbered(STATS | HINT | REPORTING, stats | hint | REPORTING)
    queues = ["inflate", "deflate", *["stats"] * bool(stats), *["free_page"] * bool(hint), "reporting"]
    set_up_as_qemu(shell, *range(len(queues)))
    assert roles(shell) == dict(enumerate(queues))
    assert not any(line.startswith(("queue_numbers", "queue_stopped")) for line in shell.take_done())


@pytest.mark.parametrize(
    ("offered", "index", "dialect"),
    [(REPORTING, 4, "fixed"), (STATS | REPORTING, 3, "offered"), (STATS | REPORTING, 4, "fixed")],
)
def test_driver_of_another_dialect_is_served_and_announced_once(offered: int, index: int, dialect: str) -> None:
    shell = numbered(offered, REPORTING)
    set_up_as_qemu(shell, 0, 1, index)
    assert roles(shell) == {0: "inflate", 1: "deflate", index: "reporting"}
    for each in (0, 1, index):
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(each, 0))
    set_up_as_qemu(shell, index, 0, 1)
    assert roles(shell) == {0: "inflate", 1: "deflate", index: "reporting"}
    assert [line for line in shell.take_done() if line.startswith("queue_")] == [f"queue_numbers {dialect}"]


def test_hinted_blocks_are_never_taken_for_reported_ones() -> None:
    """Queue 3 is reporting for Linux and hinting for the specification: it waits until the other one tells."""
    shell = numbered(HINT | REPORTING, HINT | REPORTING)
    for index in (0, 1, 3):
        for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 10 + index), ("ENABLE", 1)):
            assert shell.ring(name, index, value) == 0
    assert roles(shell) == {0: "inflate", 1: "deflate"}
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 14), ("ENABLE", 1)):
        shell.ring(name, 4, value)
    assert roles(shell) == {0: "inflate", 1: "deflate", 3: "free_page", 4: "reporting"}


def test_driver_after_a_reset_may_speak_another_dialect() -> None:
    shell = numbered(STATS | REPORTING, REPORTING)
    set_up_as_qemu(shell, 0, 1, 4)
    shell.ask(FrontendRequest.RESET_DEVICE)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    set_up_as_qemu(shell, 0, 1, 2)
    assert roles(shell) == {0: "inflate", 1: "deflate", 2: "reporting"}


def test_rings_that_an_earlier_driver_left_stopped_tell_nothing_of_the_next_one() -> None:
    shell = numbered(STATS | REPORTING, STATS | REPORTING)
    set_up_as_qemu(shell, 0, 1, 2, 3)
    for index in range(4):
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    set_up_as_qemu(shell, 0, 1, 3)
    assert roles(shell) == {0: "inflate", 1: "deflate", 3: "reporting"}


@pytest.mark.parametrize(("order", "index"), [("negotiated", 2), ("offered", 3), ("fixed", 4)])
def test_dialect_may_be_ordered(order: str, index: int) -> None:
    shell = numbered(STATS | REPORTING, REPORTING, order)
    assert shell.ask(FrontendRequest.GET_QUEUE_NUM) == 5
    set_up_as_qemu(shell, 0, 1, 2, 3, 4)
    assert roles(shell) == {2: None, 3: None, 4: None} | {0: "inflate", 1: "deflate", index: "reporting"}


def test_addresses_again_do_not_disturb_the_numbers() -> None:
    shell = numbered(REPORTING, REPORTING)
    set_up_as_qemu(shell, 0, 1, 4)
    shell.take_done()
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, ring_address(4, flags=1)) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    assert roles(shell) == {0: "inflate", 1: "deflate", 4: "reporting"}


def test_ring_that_the_ordered_numbers_do_not_know_is_told_of() -> None:
    """The operator may be wrong. The guest must not wait for ever for what it reports, so the chains are answered."""
    shell = numbered(STATS | REPORTING, REPORTING, "fixed")
    set_up_as_qemu(shell, 0, 1, 2)
    assert roles(shell) == {0: "inflate", 1: "deflate", 2: None}
    told = [action.fields for action in shell.actions if isinstance(action, EmitEvent)]
    assert told.count({"queue": 2, "reason": "there is no queue 2 by the fixed numbers"}) == 1
    shell.ring("ENABLE", 2, 0)
    shell.ring("ENABLE", 2, 1)
    assert roles(shell)[2] is None


def test_ring_without_a_role_gets_one_when_the_others_tell() -> None:
    """Three rings that no numbering explains, one of which an earlier driver has left."""
    shell = numbered(STATS | REPORTING, REPORTING)
    for index in (0, 1, 2, 4):
        set_up_as_qemu(shell, index)
    assert roles(shell)[4] is None
    shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
    shell.ring("CALL", 1, 44)
    assert roles(shell) == {0: "inflate", 1: "deflate", 4: "reporting"}
