"""An asyncio QMP client of one daemon, which connects when it is first needed and again after a loss.

Source: QEMU's "QEMU Machine Protocol Specification".
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from host.qmp.json_stream import JsonError, JsonStream
from host.qmp.negotiation import NEGOTIATE
from host.qmp.qmp_client import CommandError
from protocol.errors import BalloonError, FramingError

CONNECT_SECONDS: Final = 5.0
"""Time that a daemon has to accept a connection and to greet."""

_ANSWER_MAX: Final = 64 << 20
_CHUNK: Final = 1 << 16


class DaemonLostError(BalloonError):
    """No daemon listens there, it went away, or it does not answer in time. The next command connects anew."""


class DaemonClient:
    """A connection to the control socket at ``path``. Commands are carried out one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections = 0
        """How often it has connected: another number means that the daemon may be another one."""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._stream = JsonStream(_ANSWER_MAX)
        self._turn = asyncio.Lock()

    async def command(self, name: str, /, seconds: float | None = 30.0, **arguments: object) -> Any:
        """Carry out a command within ``seconds`` (None: without a limit) and return what it returns.

        Raises:
            CommandError: the daemon answered with an error.
            DaemonLostError: it did not answer. The connection is closed.
        """
        async with self._turn:
            try:
                if self._writer is None:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await self._connect()
                async with asyncio.timeout(seconds):
                    return await self._exchange(name, arguments)
            except CommandError:
                raise
            except TimeoutError:
                self.close()
                raise DaemonLostError(f"{self.path}: no answer to {name} in time") from None
            except (JsonError, FramingError) as error:
                self.close()
                raise DaemonLostError(f"{self.path}: not a QMP server: {error}") from error
            except OSError as error:
                self.close()
                raise DaemonLostError(f"{self.path}: {error.strerror or error}") from error
            except BaseException:  # cancelled: the answer to come would be taken for the next command's
                self.close()
                raise

    async def _connect(self) -> None:
        self._stream = JsonStream(_ANSWER_MAX)
        self._reader, self._writer = await asyncio.open_unix_connection(self.path)
        greeting = await self._receive()
        if isinstance(refusal := greeting.get("error"), dict):
            raise DaemonLostError(f"{self.path}: {refusal.get('desc')}")
        if "QMP" not in greeting:
            raise DaemonLostError(f"{self.path}: not a QMP server")
        await self._exchange(NEGOTIATE, {})
        self.connections += 1

    async def _exchange(self, name: str, arguments: Mapping[str, object]) -> Any:
        assert self._writer is not None
        members = {"arguments": arguments} if arguments else {}
        self._writer.write(json.dumps({"execute": name, **members}).encode() + b"\n")
        await self._writer.drain()
        while True:
            answer = await self._receive()
            if isinstance(refusal := answer.get("error"), dict):
                raise CommandError(name, str(refusal.get("class")), str(refusal.get("desc")))
            if "return" in answer:
                return answer["return"]

    async def _receive(self) -> Mapping[str, Any]:
        assert self._reader is not None
        while (message := self._stream.next_object()) is None:
            data = await self._reader.read(_CHUNK)
            if not data:
                raise DaemonLostError(f"{self.path}: the daemon closed the connection")
            self._stream.feed(data)
        return message

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.transport.abort()
        self._reader = self._writer = None
