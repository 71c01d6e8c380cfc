"""How many sessions a front-end's process has: those that are being released have others wait, not be refused."""

import logging
import os
import socket
from collections.abc import Iterator
from itertools import count

import pytest

from host.supervision.process_sessions import Admission, ProcessSessions
from host.supervision.supervised_vm import SupervisedVm

MOST = 2


class Crowd:
    """Connections of this process, each with the front-end's end."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._ends: dict[int, socket.socket] = {}
        self._vms: list[SupervisedVm] = []

    def connect(self) -> SupervisedVm:
        ours, theirs = socket.socketpair()
        vm = SupervisedVm(next(self._numbers), ours)
        self._ends[vm.number] = theirs
        self._vms.append(vm)
        return vm

    def hang_up(self, vm: SupervisedVm) -> None:
        self._ends[vm.number].close()

    def close(self) -> None:
        for vm in self._vms:
            vm.close()
            self._ends[vm.number].close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.close()


def test_session_past_the_limit_is_refused_and_that_is_said_once(
    crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = ProcessSessions(MOST, MOST)
    assert [sessions.admit(crowd.connect()) for _ in range(MOST)] == [Admission.BEGINS] * MOST
    with caplog.at_level(logging.WARNING):
        assert [sessions.admit(crowd.connect()) for _ in range(3)] == [Admission.REFUSED] * 3
    assert caplog.messages == [f"process {os.getpid()} has {MOST} sessions: further ones are refused"]


def test_session_past_the_limit_waits_for_one_that_is_being_released(crowd: Crowd) -> None:
    sessions = ProcessSessions(MOST, MOST)
    first, second = crowd.connect(), crowd.connect()
    sessions.admit(first), sessions.admit(second)
    crowd.hang_up(first)
    third = crowd.connect()
    assert sessions.admit(third) is Admission.WAITS
    assert sessions.waits(third)
    assert sessions.admit(crowd.connect()) is Admission.REFUSED  # one is released, for which one waits
    assert sessions.forget(first) is third
    assert not sessions.waits(third)
    assert sessions.admit(crowd.connect()) is Admission.REFUSED  # it counts
    assert sessions.forget(second) is None
    assert sessions.admit(crowd.connect()) is Admission.BEGINS


def test_connection_that_waits_no_more_has_no_place(crowd: Crowd) -> None:
    sessions = ProcessSessions(1, 2)
    first, second = crowd.connect(), crowd.connect()
    sessions.admit(first)
    crowd.hang_up(first)
    assert sessions.admit(second) is Admission.WAITS
    assert sessions.forget(second) is None
    assert sessions.forget(first) is None
    assert not sessions.waits(second)
    assert sessions.admit(crowd.connect()) is Admission.BEGINS


def test_processes_without_a_number_are_not_one_process(crowd: Crowd) -> None:
    sessions = ProcessSessions(1, 2)
    for _ in range(3):
        vm = crowd.connect()
        vm.process = 0
        assert sessions.admit(vm) is Admission.BEGINS
        assert sessions.forget(vm) is None


def test_connections_that_have_ended_while_they_wait_count_no_more_but_are_bounded(crowd: Crowd) -> None:
    sessions = ProcessSessions(1, 2)
    came = [crowd.connect() for _ in range(4)]
    admissions = []
    for vm in came:
        admissions.append(sessions.admit(vm))
        crowd.hang_up(vm)
    assert admissions == [Admission.BEGINS, Admission.WAITS, Admission.WAITS, Admission.REFUSED]
    assert [sessions.forget(vm) for vm in came[:3]] == [came[1], came[2], None]
