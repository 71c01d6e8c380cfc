"""Descriptors that take long to close, and how many of them the supervisor holds."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from host.descriptors.closing import Closer
from host.supervision.descriptor_shares import DescriptorShares, Owner
from host.supervision.packets import Kind, Packet, with_kept, with_length
from host.supervision.supervised_vm import TOO_MANY, SupervisedVm
from tests.harness.processes import DEADLINE


@pytest.fixture
def slow_file() -> Iterator[int]:
    """A descriptor whose last close waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        with contextlib.closing(server.accept()[0]):
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            yield sock.detach()


def wait_for(closer: Closer, count: int) -> None:
    """Wait until so many descriptors are not closed yet."""
    deadline = time.monotonic() + DEADLINE
    while closer.waiting != count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_file_that_waits_when_it_is_closed_is_not_waited_for(slow_file: int) -> None:
    closer = Closer()
    ours, theirs = socket.socketpair()
    with ours:
        closer.close([theirs.detach()])
        assert ours.recv(1) == b""  # on a thread
        wait_for(closer, 0)
        closer.close([slow_file, os.eventfd(0), os.memfd_create("test")])
        assert closer.waiting == 2


def test_what_cannot_be_closed_at_the_limit_of_threads_is_closed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    closer = Closer()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        closer.close([os.memfd_create("test")])
    assert closer.waiting == 1
    closer.close([os.memfd_create("test")])
    wait_for(closer, 0)


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_message_that_was_not_read_is_not_waited_for(slow_file: int) -> None:
    ours, theirs = socket.socketpair()
    vm = SupervisedVm(1, theirs)
    socket.send_fds(ours, [b"x"], [slow_file])
    os.close(slow_file)
    ours.close()
    began = time.monotonic()
    vm.close()
    assert time.monotonic() - began < DEADLINE


def test_process_and_its_user_have_a_share_each() -> None:
    shares = DescriptorShares(lambda: 100)
    one, other, third, stranger = Owner(1, 10), Owner(1, 11), Owner(1, 12), Owner(2, 20)
    assert shares.take(one, 50)
    assert not shares.take(one, 1)
    assert shares.take(other, 25)
    assert not shares.take(third, 1)
    assert shares.take(stranger, 25)
    assert not shares.take(stranger, 1)
    shares.give_back(one, 50)
    assert shares.take(third, 1)


def test_session_whose_files_find_no_room_does_not_outlive_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    shares = DescriptorShares(lambda: 8)
    pairs = [socket.socketpair() for _ in range(2)]
    first, second = [SupervisedVm(number, theirs, shares=shares) for number, (_, theirs) in enumerate(pairs, 1)]

    def come(vm: SupervisedVm, count: int) -> None:
        files = tuple(os.eventfd(0) for _ in range(count))
        vm.came(Packet(Kind.PIECE, vm.number, with_length(b"", b"x"), files))

    come(first, 3)
    assert first.lasts
    come(second, 2)  # four of this process are too many
    assert not second.lasts
    come(second, 2)
    assert caplog.messages == [f"vm 2: its session would not outlive its worker: {TOO_MANY}"]
    second.handled(Packet(Kind.HANDLED, 2, with_kept(b"", {0, 1})))
    first.handled(Packet(Kind.HANDLED, 1, with_kept(b"", {0})))
    come(first, 3)
    assert first.lasts
    first.close()
    second.close()
    assert shares.take(Owner(os.getuid(), os.getpid()), 4)
    for ours, _ in pairs:
        ours.close()
