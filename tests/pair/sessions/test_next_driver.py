"""A driver that comes after another one without a word: what the last one said is forgotten, and only then."""

import pytest

from host.balloon.free_page_hinting import COMMAND_ID_DONE, COMMAND_ID_STOP
from host.balloon.offered_features import OFFERED
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.pair.session import FEATURES, PROTOCOL_FEATURES, REGION, Shell

POISON = feature_mask(BalloonFeature.PAGE_POISON)
PACKED = feature_mask(FeatureBit.RING_PACKED)
FRESH = 0x8000_8000
QUEUES = (0, 1, 2)
BASES = {0: 5, 1: 0, 2: 700}
"""Where the first driver leaves its rings: the second queue was never used."""


def write(shell: Shell, offset: int, value: int) -> None:
    data = value.to_bytes(4, "little")
    shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=offset, flags=0, data=data))


def start(shell: Shell, bases: dict[int, int]) -> None:
    for index, base in bases.items():
        shell.ring("NUM", index, 256)
        shell.ring("BASE", index, base)
        shell.ring("ADDR", index)
        shell.ring("CALL", index, 20 + index)
        shell.ring("KICK", index, 10 + index)
    for index in bases:
        shell.ring("ENABLE", index, 1)


def stop(shell: Shell, how: str = "GET_VRING_BASE") -> None:
    for index in QUEUES:
        if how == "GET_VRING_BASE":
            shell.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
        else:
            shell.ring("ENABLE", index, 0)


def used(features: int = FEATURES, bases: dict[int, int] | None = None) -> Shell:
    """Return a session whose driver has a balloon of 9 pages and a poison value, and was suspended at ``bases``."""
    shell = Shell(OFFERED | POISON | PACKED)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    shell.ask(FrontendRequest.SET_FEATURES, features | POISON)
    shell.memory(REGION)
    write(shell, 12, 0xAA)
    start(shell, dict.fromkeys(QUEUES, FRESH if features & PACKED else 0))
    write(shell, 4, 9)
    balloon = shell.session.balloon
    balloon.settled_for = balloon.drivers  # by its first chain
    balloon.hinting.command_id = COMMAND_ID_DONE
    shell.base = dict(BASES if bases is None else bases)
    shell.take_done()
    return shell


def said(shell: Shell) -> tuple[int, int, bool, int]:
    balloon = shell.session.balloon
    return balloon.config.actual, balloon.config.poison_val, balloon.poison_told, balloon.hinting.command_id


FORGOTTEN = (0, 0, False, COMMAND_ID_STOP)
KEPT = (9, 0xAA, True, COMMAND_ID_DONE)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=["up", "down", "unused first"])
@pytest.mark.parametrize("how", ["GET_VRING_BASE", "ENABLE 0"])
def test_rings_that_begin_anew_are_another_drivers(how: str, order: tuple[int, ...]) -> None:
    shell = used()
    stop(shell, how)
    assert said(shell) == KEPT
    start(shell, dict.fromkeys(order, 0))
    assert said(shell) == FORGOTTEN
    assert shell.take_done().count("forget driver") == 1


def test_packed_rings_that_begin_anew_are_another_drivers() -> None:
    shell = used(FEATURES | PACKED, {0: 0x8005_8005, 1: FRESH, 2: 0x0003_0003})
    stop(shell)
    start(shell, dict.fromkeys(QUEUES, FRESH))
    assert said(shell) == FORGOTTEN


@pytest.mark.parametrize("how", ["GET_VRING_BASE", "ENABLE 0"])
def test_rings_that_go_on_where_they_were_are_the_same_drivers(how: str) -> None:
    shell = used()
    stop(shell, how)
    start(shell, {1: 0, 0: 5, 2: 700})
    assert said(shell) == KEPT
    stop(shell, "ENABLE 0")
    for index in QUEUES:
        shell.ring("ENABLE", index, 1)
    shell.memory(REGION)
    assert said(shell) == KEPT
    assert "forget driver" not in shell.take_done()


def test_ring_that_begins_anew_beside_the_others_is_the_same_drivers() -> None:
    shell = used()
    shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
    start(shell, {2: 0})
    assert said(shell) == KEPT


def test_poison_value_that_the_next_driver_has_told_before_its_rings_is_its_own() -> None:
    shell = used()
    stop(shell)
    write(shell, 12, 0xBB)
    start(shell, dict.fromkeys(QUEUES, 0))
    assert said(shell) == (0, 0xBB, True, COMMAND_ID_STOP)


def test_round_of_hinting_under_way_stays_with_its_id() -> None:
    shell = used()
    command_id = shell.session.balloon.hinting.start()
    stop(shell)
    start(shell, dict.fromkeys(QUEUES, 0))
    assert shell.session.balloon.hinting.command_id == command_id
    assert shell.session.balloon.config.free_page_hint_cmd_id == command_id


# -- a further SET_OWNER --------------------------------------------------------------------------------------------


def test_further_owner_with_all_rings_stopped_is_a_new_session() -> None:
    """QEMU negotiates the protocol features and hands over the back-end's channel before it says SET_OWNER."""
    shell = used()
    shell.session.owned = True
    stop(shell)
    shell.change_config(num_pages=77)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    shell.take_done()
    assert shell.ask(FrontendRequest.SET_OWNER) == 0
    done = shell.take_done()
    files = [f"{name} {index} fd None" for index in range(5) for name in ("kick", "call", "err")]
    assert done == [*files, "drop migration", "memory [] fds []", "forget driver", "reset"]
    session = shell.session
    assert (session.features, session.status, session.table.regions) == (0, 0, ())
    assert (session.protocol_features, session.has_backend_channel) == (PROTOCOL_FEATURES, True)
    assert said(shell) == FORGOTTEN
    assert session.balloon.config.num_pages == 77
    assert shell.ask(FrontendRequest.ADD_MEM_REG, REGION, (8,)) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    start(shell, dict.fromkeys(QUEUES, 0))
    assert list(shell.running) == list(QUEUES)


def test_owner_that_comes_again_while_a_ring_is_started_changes_nothing() -> None:
    shell = used()
    assert shell.ask(FrontendRequest.SET_OWNER) == 0
    assert shell.ask(FrontendRequest.SET_OWNER) == 0
    assert shell.take_done() == []
    assert said(shell) == KEPT


def test_first_owner_may_come_late() -> None:
    """User Mode Linux says it first; nothing orders it before the memory."""
    shell = Shell()
    shell.memory(REGION)
    shell.ask(FrontendRequest.SET_OWNER)
    assert shell.session.table.regions == (REGION,)
