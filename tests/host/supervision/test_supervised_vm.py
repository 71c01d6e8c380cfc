"""What counts as the end of a worker at its start."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from host.supervision.packets import Kind, Packet, with_length
from host.supervision.supervised_vm import AFTER_TAKEOVER, SOON, SupervisedVm

LATE = 100 * SOON
"""Seconds that a busy host takes for what is done at once elsewhere."""


@pytest.fixture
def vm() -> Iterator[SupervisedVm]:
    """A machine whose session has begun."""
    ours, theirs = socket.socketpair()
    with ours, contextlib.closing(SupervisedVm(1, theirs)) as vm:
        vm.came(Packet(Kind.PIECE, 1, with_length(b"", b"the beginning of a message"), number=1))
        yield vm


def test_worker_that_never_runs_or_never_serves_ends_at_its_start_however_long_that_takes(vm: SupervisedVm) -> None:
    vm.worker_ended(LATE, None)
    vm.worker_ended(LATE, 0.0)
    assert (vm.quick_ends, vm.ends_in_a_row) == (2.0, 2)


def test_worker_that_has_served_is_counted_from_then_on(vm: SupervisedVm) -> None:
    for _ in range(3):
        vm.served(LATE)
        vm.served(LATE + SOON / 4)  # with each thing that it says
        vm.worker_ended(LATE + SOON / 2, 0.0)
    assert vm.quick_ends == pytest.approx(3 * AFTER_TAKEOVER)
    assert vm.ends_in_a_row == 3
    vm.served(LATE)
    vm.worker_ended(LATE + SOON, LATE - 1)
    assert (vm.quick_ends, vm.ends_in_a_row) == (0.0, 1)


def test_machine_that_says_nothing_yet_is_as_one_that_is_served() -> None:
    ours, theirs = socket.socketpair()
    with ours, contextlib.closing(SupervisedVm(1, theirs)) as vm:
        assert vm.ends_in_a_row == 0
        vm.worker_ended(LATE, 0.0)
        assert vm.quick_ends == 0.0
        vm.worker_ended(SOON / 2, 0.0)
        assert vm.quick_ends == 1.0
