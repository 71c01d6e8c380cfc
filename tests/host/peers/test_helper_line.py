"""The line of one user's processes: each has its turn, and few calls under way."""

from collections.abc import Callable

from host.peers.helper_line import HELPERS_MAX, Call, HelperLine

ONE, TWO, THREE = 1, 2, 3


def nothing() -> None:
    pass


def line_of(*processes: int, action: Callable[[], None] = nothing) -> HelperLine:
    line = HelperLine()
    for process in processes:
        line.add(Call(process, action))
    return line


def taken(line: HelperLine) -> list[int]:
    """Take every call that may begin; return whose they are."""
    processes = []
    while (call := line.take()) is not None:
        processes.append(call.process)
    return processes


def test_calls_of_a_process_begin_in_their_order() -> None:
    line, calls = HelperLine(), [Call(ONE, nothing) for _ in range(3)]
    for call in calls:
        line.add(call)
    assert [line.take() is call for call in calls] == [True] * 3
    assert line.take() is None


def test_processes_take_turns() -> None:
    assert taken(line_of(ONE, ONE, ONE, TWO, TWO, THREE)) == [ONE, TWO, THREE, ONE, TWO, ONE]


def test_process_with_blocked_calls_is_passed_over() -> None:
    line = line_of(*[ONE] * (HELPERS_MAX + 2))
    blocked = [line.take() for _ in range(HELPERS_MAX)]
    assert (line.ready, line.take()) == (0, None)
    line.add(Call(TWO, nothing))
    assert line.ready == 1
    assert taken(line) == [TWO]
    assert blocked[0] is not None
    line.done(blocked[0])
    assert line.ready == 1
    assert taken(line) == [ONE]


def test_stand_in_takes_calls_of_its_own_process_alone() -> None:
    line = line_of(ONE, TWO, *[THREE] * (HELPERS_MAX + 1))
    assert line.take(4) is None
    call = line.take(TWO)
    assert call is not None
    assert call.process == TWO
    assert line.take(TWO) is None
    assert [line.take(THREE) is not None for _ in range(HELPERS_MAX + 1)] == [True] * HELPERS_MAX + [False]
    assert taken(line) == [ONE]


def test_ready_calls_are_those_that_may_begin() -> None:
    line = line_of(*[ONE] * (HELPERS_MAX + 3), TWO)
    assert line.ready == HELPERS_MAX + 1
    assert len(taken(line)) == HELPERS_MAX + 1
    assert line.ready == 0
