"""Rounds of free page hinting: which blocks may be discarded, for any steps of both sides in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.balloon.free_page_hinting import COMMAND_IDS, FreePageHinting
from protocol.errors import BalloonError

STOP, DONE, FIRST = 0, 1, 2


def test_round_as_linux_has_it() -> None:
    hinting = FreePageHinting()
    assert (hinting.command_id, hinting.accepts()) == (STOP, False)
    first = hinting.start()
    assert (first, hinting.command_id) == (FIRST, FIRST)
    assert not hinting.accepts()  # the driver has not said for what it gives blocks
    hinting.take_command(first)
    assert hinting.accepts()
    hinting.take_command(STOP)
    assert not hinting.accepts()
    hinting.stop()
    hinting.done()
    assert hinting.command_id == DONE
    assert hinting.start() == FIRST + 1


@pytest.mark.parametrize("command", [STOP, DONE, 3, 2**32 - 1])
def test_blocks_of_another_round_are_not_touched(command: int) -> None:
    hinting = FreePageHinting()
    hinting.start()
    hinting.take_command(command)
    assert not hinting.accepts()


def test_hints_are_not_accepted_once_a_round_is_closed() -> None:
    hinting = FreePageHinting()
    hinting.take_command(hinting.start())
    hinting.stop()
    assert not hinting.accepts()
    hinting.done()
    assert not hinting.accepts()
    hinting.take_command(DONE)  # an id that no round has
    assert not hinting.accepts()


def test_round_that_the_driver_ended_cannot_be_taken_up_again() -> None:
    hinting = FreePageHinting()
    command_id = hinting.start()
    for command in (command_id, STOP, command_id, STOP, STOP, command_id):
        hinting.take_command(command)
        assert hinting.accepts() == (hinting.ended_id is None)


def test_command_that_is_none_ends_the_drivers_claim() -> None:
    hinting = FreePageHinting()
    hinting.take_command(hinting.start())
    hinting.misunderstood()
    assert not hinting.accepts()


def test_round_excludes_a_second_round() -> None:
    hinting = FreePageHinting()
    hinting.start()
    with pytest.raises(BalloonError, match="under way"):
        hinting.start()


def test_id_is_not_used_again_before_the_driver_stopped() -> None:
    hinting = FreePageHinting(issued=COMMAND_IDS - 1, last_id=2**32 - 2)
    assert hinting.start() == 2**32 - 1
    hinting.stop()
    with pytest.raises(BalloonError, match="no command id is left"):
        hinting.start()
    hinting.take_command(STOP)
    assert hinting.start() == FIRST  # neither 0 nor 1


def test_new_driver_inherits_nothing() -> None:
    hinting = FreePageHinting()
    command_id = hinting.start()
    hinting.take_command(command_id)
    hinting.forget_driver()
    assert not hinting.accepts()
    hinting.reset()
    assert (hinting.command_id, hinting.accepts()) == (STOP, False)
    assert hinting.start() == command_id + 1


IDS = st.sampled_from([STOP, DONE, 2, 3, 4, 5, 2**32 - 1])
EVENTS = st.one_of(
    st.sampled_from(["start", "stop", "done", "misunderstood", "forget_driver", "reset"]),
    st.tuples(st.just("command"), IDS | st.just(-1)),  # -1: the id that the device shows
)


@given(events=st.lists(EVENTS, max_size=60), last_id=st.sampled_from([1, 2**32 - 2, 2**32 - 1]))
def test_blocks_count_only_between_the_drivers_start_and_the_first_stop(
    events: list[str | tuple[str, int]], last_id: int
) -> None:
    """A second reading of the rules, kept in plain sight: the round that both sides are in, or none."""
    hinting = FreePageHinting(last_id=last_id)
    common: int | None = None
    ended: set[int] = set()
    claimed: int | None = None
    shown: set[int] = set()
    for event in events:
        match event:
            case "start" if not hinting.is_open:
                command_id = hinting.start()
                assert command_id >= FIRST
                assert command_id not in shown
                shown.add(command_id)
                common = command_id if claimed == command_id else None  # a driver may guess an id
            case "stop" | "reset":
                getattr(hinting, event)()
                common = None
                claimed = None if event == "reset" else claimed
            case "done" if not hinting.is_open:
                hinting.done()
            case "misunderstood" | "forget_driver":
                getattr(hinting, event)()
                common = claimed = None
            case ("command", number):
                command = hinting.command_id if number == -1 else number
                hinting.take_command(command)
                if command == STOP and claimed is not None:
                    ended.add(claimed)
                claimed = None if command == STOP else command
                common = command if command == hinting.command_id >= FIRST and command not in ended else None
        assert hinting.accepts() == (common is not None), event
