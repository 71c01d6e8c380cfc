"""Signal descriptors that are sockets: what is queued in them is found and dropped."""

import os
import socket

import pytest

from host.ring import signal_file
from host.ring.signal_file import SignalFile


def pair() -> tuple[socket.socket, SignalFile]:
    ours, theirs = socket.socketpair()
    return ours, SignalFile(theirs.detach())


def test_descriptors_in_the_queue_are_closed() -> None:
    ours, file = pair()
    reading, writing = os.pipe()
    socket.send_fds(ours, [b"x"], [writing, writing])
    ours.send(bytes(8))
    os.close(writing)
    assert file.has_unread()
    before = os.listdir("/proc/self/fd")
    file.drain()
    assert os.listdir("/proc/self/fd") == before
    assert os.read(reading, 1) == b""
    assert not file.has_unread()
    ours.close()
    file.close()
    os.close(reading)


def test_one_drain_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_file, "DRAINED_PIECES", 3)
    ours, file = pair()
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(4):
        socket.send_fds(ours, [b"x"], [null])
    os.close(null)
    file.drain()
    assert file.has_unread()
    file.drain()
    assert not file.has_unread()
    ours.close()
    file.close()


def test_a_socket_at_its_end_has_nothing_more() -> None:
    for unread in (False, True):
        ours, file = pair()
        if unread:
            os.write(file.fd, b"x")  # then the kernel says ECONNRESET in place of an end
        ours.close()
        assert file.has_unread()
        file.drain()
        assert not file.has_unread()
        file.close()


def test_other_descriptors_are_not_read() -> None:
    file = SignalFile(os.eventfd(1))
    assert not file.has_unread()
    file.close()
