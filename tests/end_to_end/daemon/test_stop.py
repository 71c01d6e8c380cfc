"""The daemon's own end: at a signal, also while a peer holds it up."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE
from tests.harness.inode_lock import inode_locked
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, process_state, until
from tests.harness.virtual_machine import DATA_AT, VirtualMachine

PATIENCE = 3.0
"""Seconds in which the daemon leaves, a second and what a busy machine adds; a worker alone was waited for longer."""


def test_daemon_gives_up_a_worker_that_is_held_up(tmp_path: Path) -> None:
    """The kernel keeps the rest of the process until the call that holds it up returns; no VM notices that."""
    with DaemonProcess(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        with inode_locked(machine.ram.fd):
            machine.submit([(DATA_AT, PAGE_SIZE)])
            daemon.signal(signal.SIGTERM)
            daemon.events.wait("disconnected", reason="daemon stops", deadline=PATIENCE)
            until(lambda: not daemon.socket_path.exists(), "the socket is removed")
            until(lambda: is_ending(daemon.pid), "the process ends")
        assert daemon.wait() == 0


def is_ending(pid: int) -> bool:
    """Whether the process has left all of its own code: its main thread is a zombie, or all of it has ended."""
    try:
        return process_state(Path(f"/proc/{pid}/task/{pid}")) == "Z"
    except FileNotFoundError:
        return True


def test_daemon_leaves_although_the_reader_of_events_stalls(tmp_path: Path) -> None:
    path = tmp_path / "balloon.sock"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b" " * PAGE_SIZE)
    os.set_blocking(writing, True)
    command = [sys.executable, "-m", "host", "--socket-path", str(path), "--events", "-"]
    daemon = subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    try:
        until_exists(path, daemon)
        daemon.send_signal(signal.SIGTERM)
        _, errors = daemon.communicate(timeout=PATIENCE)
    finally:
        daemon.kill()
        daemon.wait()
        os.close(reading)
    assert (daemon.returncode, errors) == (0, "events: the reader does not take them: the last ones are missing\n")
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_daemon_that_has_only_just_made_its_socket_removes_it(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "balloon.sock"
    command = [sys.executable, "-m", "host", "--socket-path", str(path)]
    daemon = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until_exists(path, daemon)
    daemon.send_signal(number)
    _, errors = daemon.communicate(timeout=DEADLINE)
    assert (daemon.returncode, errors) == (0, "")
    assert not path.exists()


def until_exists(path: Path, daemon: subprocess.Popen[str]) -> None:
    """Wait for ``path`` without a pause, so as to be there before the daemon goes on."""
    end = time.monotonic() + DEADLINE
    while not path.exists():
        assert daemon.poll() is None
        assert time.monotonic() < end
