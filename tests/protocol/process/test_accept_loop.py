"""protocol/process/accept_loop.py: connections are accepted as long as there are descriptors, and again later."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import protocol.process.accept_loop
from protocol.process.accept_loop import AcceptLoop, abort_stream, open_streams
from tests.harness.processes import DEADLINE


@contextlib.asynccontextmanager
async def accepting(path: Path, accepted: "asyncio.Queue[socket.socket]") -> AsyncIterator[AcceptLoop]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        loop = AcceptLoop(listener, "a peer", accepted.put_nowait)
        loop.start()
        try:
            yield loop
        finally:
            loop.stop()


@pytest.mark.asyncio
async def test_connection_waits_while_nothing_can_be_accepted_and_the_shortage_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol.process.accept_loop, "ACCEPT_RETRY", 0.001)
    failures = [errno.EMFILE, errno.ENOMEM, errno.ENFILE, errno.ECONNABORTED]
    accept = socket.socket.accept

    def failing_at_first(self: socket.socket) -> Any:
        if failures:
            number = failures.pop(0)
            raise OSError(number, os.strerror(number))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing_at_first)
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    async with accepting(tmp_path / "socket", accepted):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(tmp_path / "socket"))
            async with asyncio.timeout(DEADLINE):
                (await accepted.get()).close()
    assert failures == []
    assert [record.getMessage() for record in caplog.records] == ["cannot accept a peer: Too many open files"]


@pytest.mark.asyncio
async def test_connection_after_the_end_is_not_accepted(tmp_path: Path) -> None:
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    async with accepting(tmp_path / "socket", accepted) as loop:
        loop.stop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(tmp_path / "socket"))
            for _ in range(3):
                await asyncio.sleep(0)
        assert accepted.empty()


@pytest.mark.asyncio
async def test_streams_own_the_connection() -> None:
    mine, theirs = socket.socketpair()
    streams = await open_streams(theirs, 100)
    assert streams is not None
    reader, writer = streams
    mine.send(b"question\n")
    assert await reader.readline() == b"question\n"
    writer.close()
    await writer.wait_closed()
    assert mine.recv(1) == b""
    mine.close()


@pytest.mark.asyncio
async def test_abort_after_a_close_that_had_data_left() -> None:
    ours, theirs = socket.socketpair()
    streams = await open_streams(ours, 1 << 10)
    assert streams is not None
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    while not streams[1].transport.get_write_buffer_size():
        streams[1].write(b"x" * (1 << 15))
    streams[1].close()
    async with asyncio.timeout(DEADLINE):
        assert await reader.read()
        await streams[1].wait_closed()
    abort_stream(streams[1])
    abort_stream(writer)
    abort_stream(writer)
