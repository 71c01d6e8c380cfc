"""Front-end and back-end over real bytes: the exact actions of whole sessions, in every known front-end's order."""

from collections.abc import Callable

import pytest

from guest.balloon.virtio_balloon import accept_features
from guest.vhost_user.frontend import Frontend
from host.balloon.offered_features import OFFERED
from host.memory.discard_plan import Refusal
from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig
from protocol.virtio_balloon import BalloonQueue
from tests.pair.session import BIT_30, FEATURES, PROTOCOL_FEATURES, REGION, Shell, negotiated, queue_setup, set_up

QUEUES = ("inflate", "deflate", "reporting")


# -- the emulated guest's own session -------------------------------------------------------------------------------


def test_whole_session_of_the_emulated_guest() -> None:
    shell, frontend = Shell(), Frontend()
    offered = shell.run(frontend.offer())
    assert offered == OFFERED & ~BIT_30
    assert frontend.protocol_features == PROTOCOL_FEATURES == shell.session.protocol_features
    shell.run(frontend.set_backend_channel(9))
    features = accept_features(offered, wanted=FEATURES)
    shell.run(frontend.accept(features))
    shell.run(frontend.set_memory((REGION,), (5,)))
    for index in range(3):
        shell.run(frontend.start_queue(index, queue_setup(index)))
    assert shell.take_done() == [
        "channel fd 9",
        f"features {FEATURES:#x}",
        "memory ['0x40000000'] fds [5]",
        *(
            line
            for index, name in enumerate(QUEUES)
            for line in (f"call {index} fd {20 + index}", f"kick {index} fd {10 + index}", f"start {index} {name} at 0")
        ),
    ]
    assert shell.closed == []
    shell.base[2] = 17
    assert shell.run(frontend.stop_queue(2)) == 17
    assert shell.take_done() == ["stop 2", "kick 2 fd None", "call 2 fd None"]


def test_ring_that_is_started_is_the_one_that_was_described() -> None:
    shell, frontend = Shell(), Frontend()
    shell.run(frontend.offer())
    shell.run(frontend.accept(FEATURES & ~BIT_30))
    shell.run(frontend.set_memory((REGION,), (5,)))
    shell.run(frontend.start_queue(2, queue_setup(2)))
    action = shell.running[2]
    assert action.queue is BalloonQueue.REPORTING
    assert action.features.event_idx
    assert action.features.indirect_desc
    assert (action.place.size, action.base) == (256, 0)
    assert [(part.region, part.offset, part.length) for part in action.place.parts] == [
        (0, 0x20000, 16 * 256),
        (0, 0x24000, 6 + 2 * 256),
        (0, 0x28000, 6 + 8 * 256),
    ]


def test_configuration_space_is_read_and_written_through_the_session() -> None:
    shell, frontend = Shell(), Frontend()
    shell.run(frontend.offer())
    assert shell.run(frontend.get_config()) == BalloonConfig()
    shell.run(frontend.set_config(4, (77).to_bytes(4, "little")))
    assert shell.run(frontend.get_config()) == BalloonConfig(actual=77)


def test_refusal_reaches_the_front_end_as_an_error() -> None:
    shell, frontend = Shell(), Frontend()
    shell.run(frontend.offer())
    with pytest.raises(VhostUserError, match="refused SET_FEATURES"):
        shell.run(frontend.accept(1 << 33))
    with pytest.raises(VhostUserError, match="refused SET_MEM_TABLE"):
        shell.run(frontend.set_memory((REGION, REGION), (5, 6)))
    assert shell.closed == [5, 6]
    assert shell.session.table.regions == ()


# -- the orders in which real front-ends speak ----------------------------------------------------------------------


def qemu(shell: Shell) -> None:
    """vhost_virtqueue_init, vhost_dev_start, vub_start: every queue enabled last, then CALL once more."""
    for index in range(3):
        shell.ring("CALL", index, 40 + index)
        shell.ring("ERR", index, 50 + index)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.memory(REGION)
    for index in range(3):
        shell.ring("NUM", index, 256)
        shell.ring("BASE", index, 0)
        shell.ring("ADDR", index)
        shell.ring("KICK", index, 10 + index)
        shell.ring("CALL", index, 20 + index)
    for index in range(3):
        shell.ring("ENABLE", index, 1)


def user_mode_linux(shell: Shell) -> None:
    """vu_setup_vq for all queues, then KICK and ENABLE each."""
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.memory(REGION)
    for index in range(3):
        shell.ring("CALL", index, 20 + index)
        shell.ring("NUM", index, 256)
        shell.ring("BASE", index, 0)
        shell.ring("ADDR", index)
    for index in range(3):
        shell.ring("KICK", index, 10 + index)
        shell.ring("ENABLE", index, 1)


def cloud_hypervisor(shell: Shell) -> None:
    """setup_vhost_user: all NUM first, ADDR before BASE, ENABLE for all, the channel last."""
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.memory(REGION)
    for index in range(3):
        shell.ring("NUM", index, 256)
    for index in range(3):
        shell.ring("ADDR", index)
        shell.ring("BASE", index, 0)
        shell.ring("CALL", index, 20 + index)
        shell.ring("KICK", index, 10 + index)
    for index in range(3):
        shell.ring("ENABLE", index, 1)
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))


def crosvm(shell: Shell) -> None:
    """activate_vring: one queue after the other, complete."""
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.memory(REGION)
    for index in range(3):
        shell.ring("NUM", index, 256)
        shell.ring("ADDR", index)
        shell.ring("BASE", index, 0)
        shell.ring("CALL", index, 20 + index)
        shell.ring("KICK", index, 10 + index)
        shell.ring("ENABLE", index, 1)


def files(index: int) -> list[str]:
    """Return the two actions that give queue ``index`` its descriptors, call first."""
    return [f"call {index} fd {20 + index}", f"kick {index} fd {10 + index}"]


FEATURES_AND_MEMORY = [f"features {FEATURES:#x}", "memory ['0x40000000'] fds [5]"]
STARTS = [f"start {index} {name} at 0" for index, name in enumerate(QUEUES)]

ORDERS: list[tuple[Callable[[Shell], None], list[str]]] = [
    (
        qemu,
        [
            *(line for i in range(3) for line in (f"call {i} fd {40 + i}", f"err {i} fd {50 + i}")),
            *FEATURES_AND_MEMORY,
            *(line for i in range(3) for line in reversed(files(i))),
            *STARTS,
        ],
    ),
    (
        user_mode_linux,
        [
            *FEATURES_AND_MEMORY,
            *(f"call {i} fd {20 + i}" for i in range(3)),
            *(line for i in range(3) for line in (f"kick {i} fd {10 + i}", STARTS[i])),
        ],
    ),
    (
        cloud_hypervisor,
        [*FEATURES_AND_MEMORY, *(line for i in range(3) for line in files(i)), *STARTS, "channel fd 9"],
    ),
    (crosvm, [*FEATURES_AND_MEMORY, *(line for i in range(3) for line in (*files(i), STARTS[i]))]),
]


@pytest.mark.parametrize(("front_end", "expected"), ORDERS, ids=lambda value: getattr(value, "__name__", ""))
def test_rings_start_once_in_every_front_ends_order(front_end: Callable[[Shell], None], expected: list[str]) -> None:
    shell = Shell()
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    front_end(shell)
    assert shell.take_done() == expected


@pytest.mark.parametrize(("front_end", "expected"), ORDERS, ids=lambda value: getattr(value, "__name__", ""))
def test_setup_repeated_on_running_rings_begins_them_anew(
    front_end: Callable[[Shell], None], expected: list[str]
) -> None:
    # User Mode Linux does so when the driver was unloaded and loaded again; it never says GET_VRING_BASE.
    shell = Shell()
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    front_end(shell)
    shell.base = {0: 3, 1: 4, 2: 5}
    shell.take_done()
    front_end(shell)
    assert {index: (ring.queue and ring.queue.value, ring.base) for index, ring in shell.running.items()} == {
        0: ("inflate", 0),
        1: ("deflate", 0),
        2: ("reporting", 0),
    }


def test_second_set_features_without_bit_30_runs_the_rings_without_enable() -> None:
    shell = Shell()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, 0x1_7000_0020) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, 0x1_2000_0020) == 0
    assert shell.memory(REGION) == 0
    for index in range(3):
        shell.ring("CALL", index, 20 + index)
        shell.ring("NUM", index, 256)
        shell.ring("BASE", index, 0)
        shell.ring("ADDR", index)
    for index in range(3):
        assert shell.ring("KICK", index, 10 + index) == 0  # REPLY_ACK is still in force
    assert shell.take_done() == [
        "features 0x170000020",
        "features 0x120000020",
        "memory ['0x40000000'] fds [5]",
        *(f"call {i} fd {20 + i}" for i in range(3)),
        *(line for i in range(3) for line in (f"kick {i} fd {10 + i}", STARTS[i])),
    ]
    assert not shell.running[2].features.indirect_desc
    assert shell.session.protocol_features == PROTOCOL_FEATURES


def test_bit_30_taken_back_runs_rings_that_waited_to_be_enabled() -> None:
    shell = negotiated()
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 12)):
        shell.ring(name, 2, value)
    assert shell.take_done() == ["kick 2 fd 12"]
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~BIT_30)
    assert shell.take_done() == [f"features {FEATURES & ~BIT_30:#x}", "start 2 reporting at 0"]


def test_ring_disabled_without_bit_30_is_left_alone() -> None:
    """No front-end may ask for that then. One that does takes its ring for stopped."""
    shell = negotiated(bit_30=False)
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 12)):
        shell.ring(name, 2, value)
    assert 2 in shell.running
    shell.ring("ENABLE", 2, 0)
    assert not shell.running
    shell.ring("ENABLE", 2, 1)
    assert 2 in shell.running


def test_poison_value_outlives_features_set_again_without_bit_30() -> None:
    """virtballoon_validate changes the features, and User Mode Linux then sets them again without the bit."""
    shell = Shell(OFFERED | 1 << 4)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 4) == 0
    shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=12, flags=0, data=b"\xaa" * 4))
    assert shell.ask(FrontendRequest.SET_FEATURES, (FEATURES | 1 << 4) & ~BIT_30) == 0
    assert shell.session.balloon.keeps_pages is Refusal.POISON
    assert shell.session.balloon.config.poison_val == 0xAAAA_AAAA


def test_bit_30_again_leaves_the_rings_enabled() -> None:
    shell = negotiated(bit_30=False)
    shell.ring("NUM", 2, 256)
    shell.ring("ADDR", 2)
    shell.ring("KICK", 2, 12)
    shell.base[2] = 3
    shell.take_done()
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    assert shell.take_done() == ["stop 2", f"features {FEATURES:#x}", "start 2 reporting at 3"]


def test_features_set_again_leave_running_rings_alone() -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    assert shell.take_done() == [f"features {FEATURES:#x}"]
