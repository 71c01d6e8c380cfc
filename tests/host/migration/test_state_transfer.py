"""A state through pipes, sockets and files, with other ends of every kind."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

import host.peers.helpers
from host.migration import state_transfer
from host.migration.device_state import STATE_BYTES_MAX
from host.migration.state_transfer import StateTransfer
from host.peers.helpers import Helpers
from protocol.errors import VhostUserError

Result = TypeVar("Result")


def run(transfer: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(transfer)


async def save(fd: int, data: bytes) -> None:
    helpers = Helpers()
    try:
        await StateTransfer(fd, helpers).save(data)
    finally:
        await helpers.closed()


async def load(fd: int) -> bytes:
    helpers = Helpers()
    try:
        return await StateTransfer(fd, helpers).load()
    finally:
        await helpers.closed()


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_state_goes_through_a_pipe_and_the_end_is_closed() -> None:
    reading, writing = os.pipe()
    run(save(writing, b"state"))
    assert not is_open(writing)
    assert os.read(reading, 100) == b"state"
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_state_comes_out_of_a_pipe_in_pieces() -> None:
    async def both() -> bytes:
        reading, writing = os.pipe()
        loading = asyncio.create_task(load(reading))
        for piece in (b"st", b"a", b"te"):
            await asyncio.sleep(0)
            os.write(writing, piece)
        await asyncio.sleep(0)
        assert not loading.done()  # the end of the stream is the end of the state
        os.close(writing)
        data = await loading
        assert not is_open(reading)
        return data

    assert run(both()) == b"state"


def test_transfer_works_in_both_directions_over_sockets() -> None:
    ours, theirs = socket.socketpair()
    run(save(ours.detach(), b"state"))
    assert theirs.recv(100) == b"state"
    assert theirs.recv(100) == b""
    theirs.close()
    ours, theirs = socket.socketpair()
    theirs.sendall(b"state")
    theirs.close()
    assert run(load(ours.detach())) == b"state"


def test_transfer_works_in_both_directions_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    run(save(os.open(path, os.O_WRONLY | os.O_CREAT), b"state"))
    assert path.read_bytes() == b"state"
    assert run(load(os.open(path, os.O_RDONLY))) == b"state"


def test_transfer_is_read_up_to_the_longest_state() -> None:
    reading, writing = os.pipe()
    os.write(writing, bytes(STATE_BYTES_MAX * 4))
    assert STATE_BYTES_MAX < len(run(load(reading))) <= 2 * (STATE_BYTES_MAX + 1)
    os.close(writing)


@pytest.mark.parametrize("direction", ["save", "load"])
def test_end_that_does_nothing_costs_a_time_limit(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_transfer, "TRANSFER_TIMEOUT", 0.01)
    reading, writing = os.pipe()
    os.write(writing, bytes(65536) if direction == "save" else b"x")
    transfer: Coroutine[Any, Any, object] = save(writing, b"state") if direction == "save" else load(reading)
    with pytest.raises(VhostUserError, match="not passed within"):
        run(transfer)
    assert not is_open(writing if direction == "save" else reading)
    os.close(reading if direction == "save" else writing)


def test_pipe_without_a_peer() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(VhostUserError, match="Broken pipe"):
        run(save(writing, b"state"))
    assert not is_open(writing)


@pytest.mark.parametrize("direction", ["save", "load"])
def test_wrong_end_of_a_pipe(direction: str) -> None:
    reading, writing = os.pipe()
    transfer: Coroutine[Any, Any, object] = save(reading, b"state") if direction == "save" else load(writing)
    with pytest.raises(VhostUserError, match="cannot be passed"):
        run(transfer)
    os.close(writing if direction == "save" else reading)


def test_descriptor_other_than_a_pipe_is_refused_and_stays_open(tmp_path: Path) -> None:
    async def refuse(fd: int) -> None:
        with pytest.raises(VhostUserError, match="a pipe, a socket or a file"):
            StateTransfer(fd, Helpers())

    for fd in (os.eventfd(0), os.open(tmp_path, os.O_RDONLY), os.open("/dev/zero", os.O_RDWR)):
        run(refuse(fd))
        os.close(fd)


def test_flags_of_the_descriptor_stay_as_they_are() -> None:
    reading, writing = os.pipe()
    keep = os.dup(writing)
    run(save(writing, b"state"))
    assert os.get_blocking(keep)
    os.close(keep)
    os.close(reading)


@pytest.mark.asyncio
async def test_file_whose_lock_is_held_holds_nothing_else_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.peers.helpers, "HELP_TIMEOUT", 0.1)
    monkeypatch.setattr(host.peers.helpers, "CLOSE_PATIENCE", 0.0)
    let_go = threading.Event()
    monkeypatch.setattr(os, "write", lambda _fd, data: let_go.wait(20) and len(data))
    fd = os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT)
    saving = asyncio.create_task(save(fd, b"state"))
    begin = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - begin < 5
    with pytest.raises(VhostUserError, match="writing the device state takes longer than"):
        await saving
    let_go.set()
