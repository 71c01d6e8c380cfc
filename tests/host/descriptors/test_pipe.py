"""Pipes without waiting, also on kernels where no single call can ask for that."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

import pytest

from host.descriptors.pipe import Pipe


@pytest.fixture(params=["Linux 6.4", "Linux 5.10"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """The read and the write end of a pipe, on a kernel that knows RWF_NOWAIT for pipes and on one that does not."""
    if request.param == "Linux 5.10":

        def refuse(*_: object) -> int:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "preadv", refuse)
        monkeypatch.setattr(os, "pwritev", refuse)
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with contextlib.suppress(OSError):  # closed by the test
            os.close(fd)


def test_empty_pipe_is_not_waited_for(ends: tuple[int, int]) -> None:
    pipe = Pipe(ends[0])
    with pytest.raises(BlockingIOError):
        pipe.read(8)
    os.write(ends[1], b"kick")
    assert pipe.read(8) == b"kick"
    os.close(ends[1])
    assert pipe.read(8) == b""
    pipe.close()


def test_full_pipe_is_not_waited_for(ends: tuple[int, int]) -> None:
    pipe = Pipe(ends[1])
    for _ in range(fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) // 4096):
        assert pipe.write(bytes(4096)) == 4096
    with pytest.raises(BlockingIOError):
        pipe.write(bytes(4096))
    assert len(os.read(ends[0], 4096)) == 4096
    assert pipe.write(bytes(8)) == 8
    pipe.close()


def test_pipe_without_a_reader(ends: tuple[int, int]) -> None:
    pipe = Pipe(ends[1])
    os.close(ends[0])
    with pytest.raises(BrokenPipeError):
        pipe.write(b"x")
    pipe.close()


def test_flags_of_the_owner_stay(ends: tuple[int, int]) -> None:
    pipe = Pipe(ends[0])
    with pytest.raises(BlockingIOError):
        pipe.read(8)
    assert not fcntl.fcntl(ends[0], fcntl.F_GETFL) & os.O_NONBLOCK
    pipe.close()


def test_close_leaves_no_descriptor(ends: tuple[int, int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = Pipe(os.dup(ends[0]))
    with pytest.raises(BlockingIOError):
        pipe.read(8)
    pipe.close()
    assert len(os.listdir("/proc/self/fd")) == before
