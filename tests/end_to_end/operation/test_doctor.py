"""Causes that are produced on purpose, and found by a daemon and its client."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.balloonctl.daemons import Daemons
from host.balloonctl.doctor import diagnosis_object, fresh_entries
from tests.end_to_end.daemon.test_control import ControlledDaemon
from tests.harness.processes import ROOT, until
from tests.harness.virtual_machine import DATA_AT, WANTED, VirtualMachine

PAGE = 4096
PAGE_REPORTING, PAGE_POISON = 1 << 5, 1 << 4
F_SEAL_FUTURE_WRITE = 0x10


def causes(daemon: ControlledDaemon) -> list[list[str]]:
    """Return what is found of each machine."""
    with Daemons([daemon.control_path]) as daemons:
        machines = list(daemons.machines())
        entries = fresh_entries(machines)
    objects = [diagnosis_object(machine.label, entry) for machine, entry in zip(machines, entries, strict=True)]
    return [[found["cause"] for found in each["findings"]] for each in objects]


def healthy(machine: VirtualMachine) -> None:
    machine.report((DATA_AT, PAGE))


def unpunchable(machine: VirtualMachine) -> None:
    fcntl.fcntl(machine.ram.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    machine.report((DATA_AT, PAGE))


def out_of_range(machine: VirtualMachine) -> None:
    machine.report((1 << 40, PAGE))


def nothing(_machine: VirtualMachine) -> None:
    pass


@contextmanager
def machines(daemon: ControlledDaemon, *makers: tuple[int, Callable[[VirtualMachine], None]]) -> Iterator[None]:
    """Connect a machine with each set of wanted features, and have each do something."""
    connected = []
    try:
        for wanted, act in makers:
            connected.append(VirtualMachine(daemon.socket_path, wanted=wanted))
            act(connected[-1])
        yield
    finally:
        for machine in connected:
            machine.close()


def test_causes_side_by_side(tmp_path: Path) -> None:
    """Each machine has its own, and one that works is beside them."""
    with (
        ControlledDaemon(tmp_path, "--features", "page-poison=on") as daemon,
        machines(
            daemon,
            (WANTED, healthy),
            (WANTED & ~PAGE_REPORTING, nothing),
            (WANTED | PAGE_POISON, healthy),
            (WANTED, unpunchable),
            (WANTED, out_of_range),
        ),
    ):
        assert causes(daemon) == [[], ["not-negotiated"], ["poison"], ["cannot-punch"], ["all-refused"]]


@pytest.mark.parametrize(
    ("options", "cause"),
    [(("--features", "page-reporting=off"), "not-offered"), (("--discard", "none"), "discard-off")],
)
def test_causes_of_the_daemon(tmp_path: Path, options: tuple[str, ...], cause: str) -> None:
    with ControlledDaemon(tmp_path, *options) as daemon, machines(daemon, (WANTED, nothing)):
        assert causes(daemon) == [[cause]]


def test_front_end_that_is_stopped(tmp_path: Path) -> None:
    """It is seen when the process is looked at next, which is when its memory table comes, and every few seconds."""
    program = [sys.executable, "-m", "guest", "--socket-path", str(tmp_path / "socket"), "--memory", "64M", "--hold"]
    with ControlledDaemon(tmp_path) as daemon:
        program[4] = str(daemon.socket_path)
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL) as guest:
            daemon.events.wait("memory", vm=1)
            os.kill(guest.pid, signal.SIGSTOP)
            until(lambda: causes(daemon)[0][:1] == ["front-end-stuck"], "the front-end is found stuck")
            os.kill(guest.pid, signal.SIGKILL)
