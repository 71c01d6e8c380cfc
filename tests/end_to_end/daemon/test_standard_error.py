"""A daemon whose standard error is a full pipe without a reader: it serves, and it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.qmp.ask import ask
from tests.harness.processes import DEADLINE, ROOT, until
from tests.harness.virtual_machine import VirtualMachine


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe without room: the descriptor to read it, and the one to write to it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@contextmanager
def running_daemon(directory: Path, stderr: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon with a control socket, ready for machines."""
    sockets = ("--socket-path", str(directory / "s"), "--control", str(directory / "c"))
    process = subprocess.Popen([sys.executable, "-m", "host", *sockets, *options], cwd=ROOT, stderr=stderr)
    try:
        until((directory / "s").is_socket, "the daemon's socket")
        until((directory / "c").is_socket, "the control socket")
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE)


@pytest.mark.parametrize("options", [(), ("-v",), ("-v", "--events", "/dev/stderr")])
def test_reader_of_standard_error_that_stalls_delays_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    with full_pipe() as (_, writing), running_daemon(tmp_path, writing, *options) as daemon:
        with VirtualMachine(tmp_path / "s") as machine:
            for _ in range(20):
                daemon.send_signal(signal.SIGUSR1)
                machine.check_alive()
                with VirtualMachine(tmp_path / "s") as other:  # the log has lines about each session
                    other.check_alive()
                assert ask(tmp_path / "c", "query-balloon", {"vm": 1})
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(DEADLINE) == 0
    assert list(tmp_path.glob("[sc]")) == []


def test_lines_that_waited_are_written_when_there_is_room(tmp_path: Path) -> None:
    with full_pipe() as (reading, writing), running_daemon(tmp_path, writing, "-v") as daemon:
        with VirtualMachine(tmp_path / "s") as machine:
            machine.check_alive()
            daemon.send_signal(signal.SIGTERM)
            until(lambda: not (tmp_path / "s").exists(), "the daemon stops")
        os.set_blocking(reading, False)
        said = b""

        def gone() -> bool:
            nonlocal said
            try:
                said += os.read(reading, 1 << 20).strip(b"\0")
            except BlockingIOError:
                return daemon.poll() is not None
            return False

        until(gone, "the daemon's end")
        assert daemon.returncode == 0
    lines = said.decode().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"vhost-user-balloon: listening on {tmp_path}/s",
        "vhost-user-balloon: vm 1 connected",
        "vhost-user-balloon: vm 1 disconnected: daemon stops",
    ]
