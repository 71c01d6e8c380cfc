"""The control socket of the emulated guest: a client sends one line and receives a text and the end of the stream.

A client that sends no line, an unknown command or too long a line, or does not read the answer, is disconnected after
at most ``DEADLINE`` seconds. At most ``CONNECTIONS`` clients are served at a time. The guest never waits for a client.
A command that has begun is carried out to its end, also when its client disconnects.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop, abort_stream, open_streams
from protocol.process.listening_socket import OWNER_ALONE, ListeningSocket

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
"""The commands, and the function that returns each answer. A :class:`BalloonError` becomes the client's error."""


class ControlServer:
    """Answers on a listening socket until it is closed, which removes the socket file too. Made with :meth:`open`."""

    def __init__(self, listener: ListeningSocket, answers: Answers, deadline: float) -> None:
        self._listener = listener
        self._answers = answers
        self._deadline = deadline
        self._clients: set[asyncio.Task[None]] = set()
        self._commands: set[asyncio.Task[str]] = set()
        self._accepting = AcceptLoop(listener.socket, "a client of the control socket", self._on_accept)

    @classmethod
    async def open(cls, path: Path, answers: Answers, *, deadline: float = DEADLINE) -> "ControlServer":
        """Listen at ``path``. The socket file of a guest that was killed is replaced.

        Raises:
            BalloonError: another process listens there, a file of another kind is there, or it cannot be created.
        """
        listener = ListeningSocket(path, "--control", OWNER_ALONE)
        server = cls(listener, answers, deadline)
        server._accepting.start()
        return server

    async def close(self) -> None:
        """Stop listening, disconnect the clients, and remove the socket file if it is still this server's."""
        if not self._listener.closed:
            self._accepting.stop()
        for task in (*self._clients, *self._commands):
            task.cancel()
        await asyncio.gather(*self._clients, *self._commands, return_exceptions=True)
        self._listener.close()

    def _on_accept(self, sock: socket.socket) -> None:
        if len(self._clients) >= CONNECTIONS:
            with contextlib.suppress(OSError), sock:
                sock.send(f"{_ERROR}too many connections\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        client = asyncio.create_task(self._serve(sock))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, sock: socket.socket) -> None:
        streams = await open_streams(sock, LINE_MAX)
        if streams is None:
            return
        reader, writer = streams
        try:
            # A client may disconnect at any time.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._deadline):
                    answer = await self._answer(await _read_line(reader))
                    writer.write(answer.encode())
                    writer.close()
                    await writer.wait_closed()
        finally:
            # Without effect after close(). Otherwise unsent data must not wait for the client.
            abort_stream(writer)

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
        # A task of its own, shielded from the client's end: a command must not be cut off in the middle.
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
        BalloonError: no guest answers there, or it does not know the command.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ASK_TIMEOUT)
        try:
            connection.connect(os.fspath(path))
            with contextlib.suppress(BrokenPipeError):  # the guest has answered already: "too many connections"
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
        # A server that answers and closes without reading the command, such as one with too many connections, resets
        # the connection after its answer.
        if not received:
            raise
    return bytes(received)
