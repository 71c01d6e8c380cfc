"""What the daemon says reaches the manager's socket, and what the manager hands over is found."""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.service_manager.notification import READY
from host.service_manager.service_manager import HandedOver, ServiceManager
from protocol.process.listening_socket import ListeningSocket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield sock


@pytest.mark.parametrize("abstract", [False, True])
def test_manager_hears_and_keeps(tmp_path: Path, abstract: bool) -> None:
    address = f"@balloon-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(address.replace("@", "\0"))
        ours = ServiceManager(address)
        assert ours.is_there
        assert ours.keeps
        ours.tell(READY)
        assert theirs.recv(100) == b"READY=1"
        reading, writing = os.pipe()
        assert ours.store("vm1.file", writing)
        ours.remove("vm1.file")
        data, (fd,), _, _ = socket.recv_fds(theirs, 100, 2)
        assert data == b"FDSTORE=1\nFDNAME=vm1.file\nFDPOLL=0"
        assert os.path.sameopenfile(fd, writing)
        assert theirs.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=vm1.file"
        for each in (reading, writing, fd):
            os.close(each)
        ours.close()
        assert not ours.tell(READY)


def test_manager_that_has_gone_is_said_once(
    tmp_path: Path, manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ours = ServiceManager(str(tmp_path / "notify"))
    manager.close()
    assert not ours.store("a", 0)
    assert not ours.keeps
    assert not ours.tell(READY)
    ours.remove("a")
    (line,) = caplog.messages
    assert "no descriptor is kept from now on" in line


def test_manager_that_does_not_read_is_waited_for_a_while(
    tmp_path: Path, manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ServiceManager(str(tmp_path / "notify"))
    assert ours._socket is not None
    ours._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 1000))
    while ours.tell({"STATUS": "x" * 1000}):
        pass
    assert "it does not read" in caplog.text


def test_without_a_manager_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not ServiceManager(None).tell(READY)
    assert not ServiceManager("").is_there
    assert not caplog.messages
    assert not ServiceManager(str(tmp_path / "absent")).keeps
    assert len(caplog.messages) == 1


def test_of_several_descriptors_of_one_name_the_first_counts(caplog: pytest.LogCaptureFixture) -> None:
    pipes = [os.pipe() for _ in range(2)]
    given = HandedOver([("a", pipes[0][0]), ("a", pipes[1][0]), ("b", pipes[0][1]), ("c", pipes[1][1])])
    assert given.take("a") == pipes[0][0]
    assert caplog.messages == ["2 descriptors named a were handed over: the first of them counts"]
    assert given.take("a") is None
    assert given.take("b") == pipes[0][1]
    assert given.names == ["c"]
    given.close()
    for fd in (pipes[1][0], pipes[1][1]):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.close(pipes[0][0])
    os.close(pipes[0][1])


def test_socket_that_listens_at_a_path_is_found_and_its_file_left(tmp_path: Path) -> None:
    path = tmp_path / "guests"
    made = ListeningSocket(path, "--socket-path")
    connected, other = socket.socketpair()
    given = HandedOver([("x", connected.detach()), ("x", os.dup(made.socket.fileno()))])
    made.leave_file()
    made.close()
    assert given.take_listener(str(tmp_path / "other")) is None
    found = given.take_listener(str(path))
    assert found is not None
    adopted = ListeningSocket(path, "--socket-path", inherited=found[0], keeps_file=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
        adopted.socket.accept()[0].close()
    adopted.close()
    assert path.is_socket()
    assert not path.with_name("guests.lock").exists()
    given.close()
    other.close()
