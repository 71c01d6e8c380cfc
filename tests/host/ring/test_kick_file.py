"""Kick descriptors: what they may be, and what a read of them may say."""

import asyncio
import errno
import os
import socket

import pytest

from host.ring.kick_file import KickFile
from host.ring.queue_files import CallFile, QueueFiles
from protocol.errors import VhostUserError, VirtqueueError
from tests.harness.processes import DEADLINE
from tests.host.ring.test_ring_service import Bench, bench, settle

__all__ = ["bench"]  # a fixture


def test_descriptors_on_a_socket_are_closed() -> None:
    closed: list[int] = []
    ours, theirs = socket.socketpair()
    kick = KickFile(theirs.detach(), closed.extend)
    fd = os.eventfd(0)
    socket.send_fds(ours, [b"x"], [fd, fd])
    assert kick.take()
    assert len(closed) == 2
    for number in (fd, *closed):
        os.close(number)
    ours.close()
    assert not kick.take()
    assert kick.gone
    kick.close()


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_readers_of_a_stream_share_a_lock(kind: str) -> None:
    """So the event loop must not read it: the front-end may be in the middle of a read that never ends."""
    ours, theirs = socket.socketpair() if kind == "socket" else (None, None)
    reading, writing = (theirs.detach(), ours.detach()) if ours and theirs else os.pipe()
    kick = KickFile(reading)
    assert kick.held_by_others
    assert not kick.take()
    os.write(writing, b"x")
    assert kick.take()
    os.close(writing)
    assert not kick.take()
    assert kick.gone
    kick.close()


def test_memory_as_a_kick_descriptor_is_refused_and_stays_its_senders() -> None:
    fd = os.memfd_create("kick")
    with pytest.raises(VhostUserError, match="only an eventfd"):
        KickFile(fd)
    os.close(fd)


def break_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)


def test_error_that_is_not_the_drivers_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kick = KickFile(os.eventfd(1))
    break_reads(monkeypatch)
    with pytest.raises(VirtqueueError, match="the kick descriptor cannot be read: Input/output error"):
        kick.take()
    assert not kick.gone
    kick.close()


@pytest.mark.asyncio
async def test_kick_that_cannot_be_read_stops_its_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    service = bench.start()
    bench.executor.run_one()
    await settle()
    break_reads(monkeypatch)
    bench.queue.kick()
    async with asyncio.timeout(DEADLINE):
        while not bench.executor.waiting:
            await settle()
    bench.executor.run_one()
    await settle()
    assert service.broken
    assert str(bench.turns[-1].broken) == "the kick descriptor cannot be read: Input/output error"
    await service.stop()


def test_interrupt_that_cannot_be_sent_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    reading, writing = os.pipe()
    files = QueueFiles(call=CallFile(writing), on_failure=told.append)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", fail)
    files.signal_call()
    files.signal_call()
    assert told == ["a call or error descriptor cannot be signalled: Input/output error"]
    files.close()
    os.close(reading)


def test_driver_that_has_gone_is_not_a_failure() -> None:
    told: list[str] = []
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    files = QueueFiles(call=CallFile(writing), err=CallFile(theirs.detach()), on_failure=told.append)
    os.close(reading)
    ours.close()
    files.signal_call()
    files.signal_err()
    assert told == []
    files.close()
