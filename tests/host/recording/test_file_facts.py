"""What a recording says of a descriptor."""

import os
import socket
from pathlib import Path

import pytest

from host.recording.file_facts import describe_file
from protocol.recording.records import FileFact


def test_memory_files_and_files_have_a_size(tmp_path: Path) -> None:
    memory = os.memfd_create("ram")
    try:
        os.ftruncate(memory, 1 << 30)
        assert describe_file(memory) == FileFact("memfd", 1 << 30)
    finally:
        os.close(memory)
    (tmp_path / "memory").write_bytes(b"12345")
    with (tmp_path / "memory").open("rb") as file:
        assert describe_file(file.fileno()) in (FileFact("file", 5), FileFact("tmpfs file", 5))


def test_file_of_shared_memory_is_on_tmpfs() -> None:
    path = Path("/dev/shm/vhost-user-balloon-test")
    try:
        with path.open("wb") as file:
            assert describe_file(file.fileno()) == FileFact("tmpfs file", 0)
    finally:
        path.unlink(missing_ok=True)


def test_signals_have_no_size(tmp_path: Path) -> None:
    event = os.eventfd(0)
    read, write = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    left, right = socket.socketpair()
    try:
        kinds = [describe_file(fd) for fd in (event, read, write, fifo, left.fileno())]
    finally:
        for fd in (event, read, write, fifo):
            os.close(fd)
        left.close()
        right.close()
    assert kinds == [FileFact("eventfd"), FileFact("pipe"), FileFact("pipe"), FileFact("pipe"), FileFact("socket")]


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_descriptor_that_is_none_is_unknown(fd: int) -> None:
    assert describe_file(fd) == FileFact("unknown")
