"""Every type that a descriptor can have: accepted or refused."""

import ctypes
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.descriptors.received_file import FileKind, kind_at_once, kind_of_file, signal_kind
from protocol.errors import VhostUserError

_libc = ctypes.CDLL(None, use_errno=True)


def signalfd() -> int:
    mask = (ctypes.c_char * 128)()
    _libc.sigemptyset(mask)
    _libc.sigaddset(mask, signal.SIGUSR1)
    return int(_libc.signalfd(-1, mask, 0))


def timerfd() -> int:
    return int(_libc.timerfd_create(1, 0))


def inet_socket() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def datagram_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def stream_socket() -> int:
    ours, theirs = socket.socketpair()
    ours.close()
    return theirs.detach()


def unconnected_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def listening_socket() -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("")
    sock.listen()
    return sock.detach()


def read_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.fixture
def named_pipe(tmp_path: Path) -> Iterator[int]:
    os.mkfifo(tmp_path / "pipe")
    fd = os.open(tmp_path / "pipe", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: os.memfd_create("ram"), FileKind.MEMORY),
        (lambda: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR), FileKind.MEMORY),
        (lambda: os.eventfd(0), FileKind.EVENTFD),
        (read_end, FileKind.PIPE),
        (stream_socket, FileKind.SOCKET),
    ],
)
def test_types_that_are_known_at_once(make: Callable[[], int], kind: FileKind) -> None:
    fd = make()
    assert kind_at_once(fd) is kind
    os.close(fd)


@pytest.mark.parametrize(
    "make", [signalfd, timerfd, inet_socket, datagram_socket, unconnected_socket, listening_socket]
)
def test_types_that_are_on_no_list(make: Callable[[], int]) -> None:
    fd = make()
    with pytest.raises(VhostUserError, match="is not taken"):
        kind_at_once(fd)
    os.close(fd)


def test_epoll_descriptor_is_not_taken() -> None:
    with select.epoll() as epoll, pytest.raises(VhostUserError, match="eventpoll"):
        kind_at_once(epoll.fileno())


def test_ordinary_file_is_looked_at_aside_and_needs_no_mount_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a mount that this process does not see, or a root without a mount, is a file like any other."""

    def no_mounts(path: Path, *_: object, **__: object) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(Path, "read_text", no_mounts)
    fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    if kind_at_once(fd) is None:  # not where the directory lies on a tmpfs
        assert kind_of_file(fd) is FileKind.FILE
    os.close(fd)


@pytest.mark.parametrize("path", ["/proc/self/status", "/sys/kernel"])
def test_file_system_that_is_on_no_list(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert kind_at_once(fd) is None
    with pytest.raises(VhostUserError, match="file system of type 0x"):
        kind_of_file(fd)
    os.close(fd)


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_device_and_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(VhostUserError, match="a directory or a device"):
        kind_of_file(fd)
    os.close(fd)


def test_named_pipe_is_a_pipe(named_pipe: int) -> None:
    assert kind_of_file(named_pipe) is FileKind.PIPE
    assert signal_kind(named_pipe) is FileKind.PIPE


def test_memory_as_a_signal_descriptor_is_refused() -> None:
    fd = os.memfd_create("ram")
    with pytest.raises(VhostUserError, match="only an eventfd, a pipe or a unix stream socket"):
        signal_kind(fd)
    os.close(fd)
