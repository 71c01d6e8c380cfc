"""The control socket of the emulated guest: a text for each command, and clients that misbehave."""

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from guest.control import CONNECTIONS, LINE_MAX, ControlServer, ask
from protocol.errors import BalloonError

LONG_TEXT = "x" * (4 << 20) + "\n"

ANSWERS = {"buddyinfo": lambda: "Node 0\n", "long": lambda: LONG_TEXT}

KNOWN = "known are buddyinfo, long, help"
TOO_LONG = f"error: a command has at most {LINE_MAX - 1} bytes\n".encode()

PATIENCE = 20.0
"""Seconds after which what a test waits for counts as missing."""


def serve(path: Path, client: Callable[[], None], *, deadline: float = 60.0) -> None:
    """Run ``client`` against a server, and see that the server still answers afterwards and leaves nothing."""

    async def scene() -> None:
        server = await ControlServer.open(path, ANSWERS, deadline=deadline)
        try:
            await asyncio.to_thread(client)
            assert await asyncio.to_thread(ask, path, "buddyinfo") == "Node 0\n"
        finally:
            await server.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scene())
    assert not path.exists()


def connect(path: Path) -> socket.socket:
    """Return a connection on which nothing waits for ever."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    connection.connect(str(path))
    return connection


def receive_all(connection: socket.socket) -> bytes:
    """Return everything up to the end of the file, or of the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 20):
            received += data
    return bytes(received)


def exchange(path: Path, request: bytes, *, end: bool = False) -> bytes:
    """Send ``request`` and return everything until the end of the file."""
    with connect(path) as connection:
        with contextlib.suppress(BrokenPipeError):  # what came before was enough for an answer
            connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"buddyinfo\n", b"Node 0\n"),
        (b"  buddyinfo \r\n", b"Node 0\n"),
        (b"buddyinfo\nlong\n", b"Node 0\n"),
        (b"long\n", LONG_TEXT.encode()),
        (b"help\n", b"buddyinfo\nlong\nhelp\n"),
        (b"zoneinfo\n", f"error: unknown command 'zoneinfo', {KNOWN}\n".encode()),
        (b"\n", f"error: unknown command '', {KNOWN}\n".encode()),
        (b"\xff\x00\n", f"error: unknown command '\\\\xff\\x00', {KNOWN}\n".encode()),
        (b"z" * 100 + b"\n", f"error: unknown command '{'z' * 40}...', {KNOWN}\n".encode()),
        (b"z" * LINE_MAX * 4, TOO_LONG),
    ],
)
def test_line_is_answered_with_a_text(tmp_path: Path, request_: bytes, answer: bytes) -> None:
    path = tmp_path / "control"

    def client() -> None:
        assert exchange(path, request_) == answer

    serve(path, client)


@pytest.mark.parametrize(("request_", "answer"), [(b"buddyinfo", b"Node 0\n"), (b"", b"error: unknown command ''")])
def test_end_of_the_stream_ends_the_line(tmp_path: Path, request_: bytes, answer: bytes) -> None:
    path = tmp_path / "control"

    def client() -> None:
        assert exchange(path, request_, end=True).startswith(answer)

    serve(path, client)


def test_client_without_a_line_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "control"

    def client() -> None:
        assert exchange(path, b"") == b""
        assert exchange(path, b"buddy") == b""

    serve(path, client, deadline=0.1)


def test_client_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    """It gets what the kernel had taken already. The rest is thrown away with the connection."""
    path = tmp_path / "control"

    def client() -> None:
        with connect(path) as deaf:
            deaf.sendall(b"long\n")
            hung_up = select.poll()
            hung_up.register(deaf, 0)
            assert hung_up.poll(PATIENCE * 1000)
            assert 0 < len(receive_all(deaf)) < len(LONG_TEXT)

    serve(path, client, deadline=0.1)


def test_flood_of_garbage_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "control"

    def client() -> None:
        for _ in range(3):
            assert exchange(path, b"\x00" * (8 << 20)) in (b"", TOO_LONG)

    serve(path, client)


def test_clients_that_vanish_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "control"

    def client() -> None:
        for request in (b"", b"long\n", b"buddyinfo\n", b"zz") * 3:
            with connect(path) as hasty:
                hasty.sendall(request)

    serve(path, client)


def test_client_beyond_the_limit_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "control"

    def client() -> None:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(path)) for _ in range(CONNECTIONS)]
            assert exchange(path, b"") == b"error: too many connections\n"
            with pytest.raises(BalloonError, match="too many connections"):
                ask(path, "buddyinfo")
            for connection in connections:
                connection.sendall(b"buddyinfo\n")
                assert receive_all(connection) == b"Node 0\n"

    serve(path, client)


def test_close_does_not_wait_for_clients(tmp_path: Path) -> None:
    path = tmp_path / "control"

    async def scene() -> None:
        server = await ControlServer.open(path, ANSWERS)
        with await asyncio.to_thread(connect, path) as connection:
            connection.sendall(b"budd")
            await asyncio.to_thread(ask, path, "help")  # by now the first client is being served
            await server.close()
            assert await asyncio.to_thread(receive_all, connection) == b""

    asyncio.run(scene())


# -- the client -------------------------------------------------------------------------------------------------------


def test_unknown_command_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control"

    def client() -> None:
        with pytest.raises(BalloonError, match="unknown command 'weather', known are"):
            ask(path, "weather")

    serve(path, client)


def test_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="No such file or directory"):
        ask(tmp_path / "control", "buddyinfo")


def test_guest_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest.control._ASK_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        with pytest.raises(BalloonError, match=r"/s: no answer within 0\.01 s$"):
            ask(tmp_path / "s", "buddyinfo")


# -- commands that take their time ------------------------------------------------------------------------------------


def test_slow_command_is_waited_for_and_its_error_returned(tmp_path: Path) -> None:
    async def good() -> str:
        await asyncio.sleep(0)
        return "done\n"

    async def bad() -> str:
        await asyncio.sleep(0)
        raise BalloonError("not today")

    async def scene() -> None:
        server = await ControlServer.open(tmp_path / "control", {"good": good, "bad": bad})
        try:
            assert await asyncio.to_thread(ask, tmp_path / "control", "good") == "done\n"
            with pytest.raises(BalloonError, match=r"not today$"):
                await asyncio.to_thread(ask, tmp_path / "control", "bad")
        finally:
            await server.close()

    asyncio.run(scene())


def test_command_goes_on_without_the_client_that_asked(tmp_path: Path) -> None:
    async def scene() -> None:
        begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def command() -> str:
            begun.set()
            await go_on.wait()
            done.set()
            return ""

        server = await ControlServer.open(tmp_path / "control", {"command": command}, deadline=0.1)
        try:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control"))
            writer.write(b"command\n")
            await begun.wait()
            assert await reader.read() == b""  # given up at the deadline
            writer.close()
            go_on.set()
            async with asyncio.timeout(PATIENCE):
                await done.wait()
        finally:
            await server.close()

    asyncio.run(scene())


def test_answer_sent_before_the_command_is_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()

        class Answered(socket.socket):
            def connect(self, address: object) -> None:
                super().connect(str(address))
                accepted, _ = listener.accept()
                with accepted:
                    accepted.sendall(b"error: too many connections\n")

        monkeypatch.setattr("guest.control.socket.socket", Answered)
        with pytest.raises(BalloonError, match=r"control: too many connections$"):
            ask(tmp_path / "control", "buddyinfo")
