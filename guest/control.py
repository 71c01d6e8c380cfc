"""The control socket of the emulated guest: somebody writes one line, gets a text, and then the end of the file.

A client that says nothing, says something else, says too much, or does not read the answer is given up after
``DEADLINE`` seconds, and there are never more than ``CONNECTIONS`` of them: whatever they do, the guest goes on.
A client that goes away does not undo what it asked for.
"""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError

DEADLINE: Final = 5.0
"""Seconds that one client has for everything, from connecting to having read the answer."""
CONNECTIONS: Final = 16
LINE_MAX: Final = 256
"""Bytes of a command with its newline."""

_ERROR: Final = "error: "
_SHOWN: Final = 40
_ASK_TIMEOUT: Final = 10.0
_ANSWER_MAX: Final = 1 << 20

Answers = Mapping[str, Callable[[], str | Awaitable[str]]]
"""What can be asked, and where the text comes from. A :class:`BalloonError` becomes the client's error."""


class ControlServer:
    """Answers on the socket at ``path`` until it is closed; the file goes with it.

    Make one with :meth:`open`.
    """

    def __init__(self, path: Path, answers: Answers, deadline: float) -> None:
        self._path = path
        self._answers = answers
        self._deadline = deadline
        self._clients: set[asyncio.Task[None]] = set()
        self._commands: set[asyncio.Task[str]] = set()
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None

    @classmethod
    async def open(cls, path: Path, answers: Answers, *, deadline: float = DEADLINE) -> "ControlServer":
        """Listen at ``path``. The socket file of a guest that was killed is replaced.

        Raises:
            BalloonError: another process listens there, something else is there, or it cannot be created.
        """
        server = cls(path, answers, deadline)
        sock = _bind(path)
        status = os.lstat(path)
        server._identity = status.st_dev, status.st_ino
        server._server = await asyncio.start_unix_server(server._on_connected, sock=sock, limit=LINE_MAX)
        return server

    async def close(self) -> None:
        """Stop listening, give up whoever is connected, and remove the socket file if it is still this one's."""
        if self._server is not None:
            self._server.close()
        for task in (*self._clients, *self._commands):
            task.cancel()
        await asyncio.gather(*self._clients, *self._commands, return_exceptions=True)
        with contextlib.suppress(OSError):
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._path)

    def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio would keep the tasks of clients to itself, and close() could not end them.
        if len(self._clients) >= CONNECTIONS:
            writer.write(f"{_ERROR}too many connections\n".encode())
            writer.close()
            return
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A client that went away is nobody's fault.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._deadline):
                    answer = await self._answer(await _read_line(reader))
                    writer.write(answer.encode())
                    writer.close()
                    await writer.wait_closed()
        finally:
            # Without effect after a good end. Otherwise what is left to be written must not wait for the client.
            writer.transport.abort()

    async def _answer(self, line: str | None) -> str:
        if line is None:
            return f"{_ERROR}a command has at most {LINE_MAX - 1} bytes\n"
        if line == "help":
            return "".join(f"{name}\n" for name in (*self._answers, "help"))
        if line in self._answers:
            answer = self._answers[line]()
            return answer if isinstance(answer, str) else await self._carry_out(answer)
        shown = repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "...")
        return f"{_ERROR}unknown command {shown}, known are {', '.join((*self._answers, 'help'))}\n"

    async def _carry_out(self, command: Awaitable[str]) -> str:
        # To its end, whoever is still there to hear of it: half a command may be worse than none.
        async def run() -> str:
            try:
                return await command
            except BalloonError as error:
                return f"{_ERROR}{error}\n"

        task = asyncio.create_task(run())
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)
        return await asyncio.shield(task)


async def _read_line(reader: asyncio.StreamReader) -> str | None:
    # The command, ended by a newline or the end of the stream; None when it is too long.
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        line = error.partial
    except asyncio.LimitOverrunError:
        return None
    return line.decode(errors="backslashreplace").strip()


def ask(path: Path, command: str) -> str:
    """Return what the guest whose control socket is at ``path`` answers to ``command``.

    Raises:
        BalloonError: nobody answers there, or the guest does not know the command.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ASK_TIMEOUT)
        try:
            connection.connect(os.fspath(path))
            with contextlib.suppress(BrokenPipeError):  # answered already: it was busy, for example
                connection.sendall(f"{command}\n".encode(errors="surrogateescape"))
            answer = _receive_all(connection)
        except TimeoutError:
            raise BalloonError(f"{path}: no answer within {_ASK_TIMEOUT:g} s") from None
        except OSError as error:
            # "AF_UNIX path too long" carries no errno.
            raise BalloonError(f"{path}: {error.strerror or error}") from error
    text = answer.decode(errors="backslashreplace")
    if text.startswith(_ERROR):
        raise BalloonError(f"{path}: {text.removeprefix(_ERROR).rstrip()}")
    if not text:
        raise BalloonError(f"{path}: no answer")
    return text


def _receive_all(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        while len(received) <= _ANSWER_MAX and (data := connection.recv(1 << 16)):
            received += data
    except ConnectionResetError:
        # That is how it looks when the other side answered without having read the question: it was busy, for example.
        if not received:
            raise
    return bytes(received)


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(os.fspath(path))
        sock.listen(CONNECTIONS)
    except OSError as error:
        sock.close()
        raise BalloonError(f"--control {path}: {error.strerror or error}") from error
    except BalloonError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    # A socket file outlives a guest that was killed. It may go, unless somebody still listens on it.
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BalloonError(f"--control {path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            raise BalloonError(f"--control {path}: another process listens there") from None
        else:
            raise BalloonError(f"--control {path}: another process listens there")
