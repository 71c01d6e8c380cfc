"""The daemon's listening half: sockets that it accepts or refuses, connections that have to wait."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from host.balloon.offered_features import OFFERED
from host.control.daemon_status import DaemonStatus
from host.daemon import Daemon
from host.daemon_options import DaemonOptions
from host.service_manager.listeners import Listeners
from host.sessions import Sessions
from protocol.errors import BalloonError
from protocol.process.events import EventLog
from protocol.vhost_user import FrontendRequest
from tests.harness.processes import open_fds
from tests.harness.virtual_machine import Client


def options(*, path: Path | None = None, fd: int | None = None) -> DaemonOptions:
    return DaemonOptions(socket_path=path, fd=fd, features=OFFERED, discard=True, balloon_pages=0)


def open_options(wanted: DaemonOptions) -> None:
    """Open what the options name; nothing may be left to close when that is refused."""
    with ExitStack() as sockets:
        Listeners().open_socket(wanted.socket_path, wanted.fd, wanted.socket_access, sockets)


@pytest.mark.parametrize("kind", ["file", "directory", "long", "missing"])
def test_path_that_is_refused_leaves_no_socket_open(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    paths = {"file": "file", "directory": ".", "long": "x" * 200, "missing": "missing/socket"}
    before = open_fds(os.getpid()).keys()
    with pytest.raises(BalloonError):
        open_options(options(path=tmp_path / paths[kind]))
    assert open_fds(os.getpid()).keys() == before


def test_dangling_link_and_a_foreign_socket_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BalloonError, match="exists and is not a socket"):
        open_options(options(path=tmp_path / "link"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "datagrams"))
        with pytest.raises(BalloonError):
            open_options(options(path=tmp_path / "datagrams"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "datagrams").is_socket()


def test_listener_that_does_not_accept_is_alive_all_the_same(tmp_path: Path) -> None:
    """Its backlog is full: a blocking probe would wait for ever."""
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(BalloonError, match="another process listens there"):
            open_options(options(path=path))


def test_refused_descriptor_stays_open() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        with pytest.raises(BalloonError):
            open_options(options(fd=mine.fileno()))
        os.fstat(mine.fileno())


@pytest.mark.asyncio
async def test_accept_pauses_while_there_is_no_descriptor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection waits in the backlog; the daemon neither spins over it nor forgets it."""
    later: list[Callable[[], object]] = []
    wanted, events = options(path=tmp_path / "socket"), EventLog(None, lambda: 0.0)
    daemon = Daemon(wanted, events, Sessions(wanted, events, None, {}), {}, DaemonStatus())
    loop = asyncio.get_running_loop()
    accepts = 0
    accept = socket.socket.accept

    def failing_accept(self: socket.socket) -> Any:
        nonlocal accepts
        accepts += 1
        if accepts == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(self)

    def call_later(_delay: float, callback: Callable[..., object], *arguments: Any) -> None:
        later.append(lambda: callback(*arguments))

    monkeypatch.setattr(socket.socket, "accept", failing_accept)
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_later", call_later)
        client = Client(tmp_path / "socket")
        for _ in range(20):
            await asyncio.sleep(0)
        assert (accepts, len(later)) == (1, 1)
        assert [record.message for record in caplog.records] == ["cannot accept a virtual machine: Too many open files"]
    later[0]()
    assert await asyncio.to_thread(client.ask, FrontendRequest.GET_QUEUE_NUM) == 5
    client.close()
    assert not running.done()  # else the signal would end the tests
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert not (tmp_path / "socket").exists()
