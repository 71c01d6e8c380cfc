"""The process of a front-end: known, watched, and what is done when it cannot be watched."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host import front_end_process
from host.front_end_process import FrontEndProcess
from tests.harness.processes import DEADLINE

CONNECT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
sys.stdin.read()
"""


@contextmanager
def connected_process(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE)
        command = [sys.executable, "-c", CONNECT, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            accepted, _ = listener.accept()
            with accepted:
                yield process, accepted


@pytest.mark.asyncio
@pytest.mark.parametrize("option", [front_end_process._SO_PEERPIDFD, 9999])
async def test_its_end_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: int) -> None:
    """Also where the socket cannot give a pidfd: on Linux before 6.5."""
    monkeypatch.setattr(front_end_process, "_SO_PEERPIDFD", option)
    with connected_process(tmp_path / "socket") as (process, accepted):
        watched = FrontEndProcess(accepted)
        assert (watched.pid, watched.uid) == (process.pid, os.getuid())
        gone = asyncio.create_task(watched.gone())
        done, _ = await asyncio.wait({gone}, timeout=0.05)
        assert not done
        process.kill()
        async with asyncio.timeout(DEADLINE):
            await gone
        watched.close()


@pytest.mark.asyncio
async def test_one_that_cannot_be_watched_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(f"no pidfd of {pid}")

    monkeypatch.setattr(front_end_process, "_SO_PEERPIDFD", 9999)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        unwatched = FrontEndProcess(ours)
        async with asyncio.timeout(DEADLINE):
            await unwatched.gone()
        unwatched.close()
