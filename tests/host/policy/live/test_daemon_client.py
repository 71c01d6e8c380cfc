"""The asyncio client against a scripted server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.policy.live.daemon_client import DaemonClient, DaemonLostError
from host.qmp.qmp_client import CommandError
from tests.harness.scripted_server import answering

GREETING = b'{"QMP": {}}\r\n'
NEGOTIATED = b'{"return": {}}\r\n'


@pytest.mark.asyncio
async def test_commands_are_answered_and_errors_leave_the_connection(tmp_path: Path) -> None:
    answers = (
        GREETING,
        NEGOTIATED,
        b'{"event": "RESET"}\r\n{"return": 7}\r\n',
        b'{"error": {"class": "GenericError", "desc": "no"}}\r\n',
        b'{"return": 8}\r\n',
        b"",
    )
    with answering(tmp_path / "m", *answers) as lines:
        client = DaemonClient(tmp_path / "m")
        assert await client.command("query-vms") == 7
        with pytest.raises(CommandError, match="balloon: no"):
            await client.command("balloon", value=1)
        assert await client.command("query-vms") == 8
        assert client.connections == 1
        with pytest.raises(DaemonLostError, match="closed the connection"):
            await client.command("query-vms")
    assert lines[2] == b'{"execute": "balloon", "arguments": {"value": 1}}\n'


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b'{"error": {"class": "GenericError", "desc": "there are 32 clients already"}}', "32 clients already"),
        (b'{"hello": 1}', "not a QMP server"),
        (b"HTTP/1.1 400\r\n", "not a QMP server: not JSON"),
    ],
)
async def test_what_is_no_daemon_is_lost(tmp_path: Path, greeting: bytes, why: str) -> None:
    with answering(tmp_path / "m", greeting):
        client = DaemonClient(tmp_path / "m")
        with pytest.raises(DaemonLostError, match=why):
            await client.command("query-vms")
        client.close()


@contextlib.asynccontextmanager
async def silent_server(path: Path) -> AsyncIterator[asyncio.Event]:
    """A server that never answers a command. The event is set once it has one."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readline()
        writer.write(NEGOTIATED)
        await reader.readline()
        asked.set()
        with contextlib.suppress(OSError):
            assert await reader.readline() == b""  # the client hangs up
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        gone.set()

    async with await asyncio.start_unix_server(serve, path):
        yield asked
        await gone.wait()


@pytest.mark.asyncio
async def test_answer_that_does_not_come_ends_the_connection(tmp_path: Path) -> None:
    async with silent_server(tmp_path / "m") as asked:
        with pytest.raises(DaemonLostError, match="no answer to query-vms in time"):
            await DaemonClient(tmp_path / "m").command("query-vms", 0.05)
        await asked.wait()


@pytest.mark.asyncio
async def test_cancelled_command_ends_the_connection(tmp_path: Path) -> None:
    async with silent_server(tmp_path / "m") as asked:
        task = asyncio.create_task(DaemonClient(tmp_path / "m").command("query-vms", None))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_socket_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaemonLostError, match=f"{tmp_path}/none: No such file or directory"):
        await DaemonClient(tmp_path / "none").command("query-vms")
