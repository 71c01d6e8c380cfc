"""The call descriptor of a queue: what may be one, and a signal that cannot be given."""

import os
import socket
from pathlib import Path

import pytest

from host.ring.queue_files import CallFile
from protocol.errors import VhostUserError


def test_full_call_descriptor_is_passed_over() -> None:
    ours, theirs = socket.socketpair()
    fds = [theirs.detach(), os.eventfd(0)]
    os.eventfd_write(fds[1], (1 << 64) - 2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while os.write(writing, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(writing, True)
    for fd in (*fds, writing):
        file = CallFile(fd)
        for _ in range(1000):
            file.signal()
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    ours.close()
    os.close(reading)


def test_descriptor_that_could_block_a_signal_is_not_taken(tmp_path: Path) -> None:
    master, terminal = os.openpty()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for fd in (master, terminal, file, os.open("/dev/null", os.O_RDWR)):
        with pytest.raises(VhostUserError, match="only an eventfd, a pipe or a unix stream socket"):
            CallFile(fd)
        os.close(fd)  # still ours


def test_signals_leave_the_descriptors_flags_alone() -> None:
    fd = os.eventfd(0)
    file = CallFile(fd)
    file.signal()
    file.signal()
    assert os.get_blocking(fd)
    assert os.eventfd_read(fd) == 2
    file.close()
