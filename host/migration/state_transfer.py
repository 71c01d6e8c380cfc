"""Writing a device's state into a pipe, and reading one from it, without waiting for the process at its other end.

Nothing here changes the descriptor's flags, which its owner shares: every call on a pipe or a socket asks for itself
not to wait. A call on a file cannot, and waits for the inode's lock, which the front-end may hold: a helper makes it.
"""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from functools import partial
from typing import Final

from host.descriptors.pipe import Pipe
from host.descriptors.socket_read import receive_bytes, until_ready
from host.migration.device_state import STATE_BYTES_MAX
from host.peers.helpers import Helpers
from protocol.errors import VhostUserError

TRANSFER_TIMEOUT: Final = 10.0
"""Seconds that the other end has to take or to give a whole state."""


class StateTransfer:
    """One transfer, from :meth:`save` or :meth:`load` to its end. It owns the descriptor and closes it at the end."""

    def __init__(self, fd: int, helpers: Helpers) -> None:
        """Take ``fd``.

        Raises:
            VhostUserError: it is neither a pipe nor a socket nor a regular file; the caller still owns it.
        """
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
            raise VhostUserError("a device state is passed through a pipe, a socket or a file")
        self._fd = fd
        self._helpers = helpers
        self._pipe = Pipe(fd) if stat.S_ISFIFO(mode) else None
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None
        self._loop = asyncio.get_running_loop()

    async def save(self, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            VhostUserError: the other end has gone, or does not take it in time.
        """
        with self._ending():
            async with asyncio.timeout(TRANSFER_TIMEOUT):
                while data:
                    try:
                        data = data[await self._write(data) :]
                    except BlockingIOError:
                        await until_ready(self._fd, self._loop.add_writer, self._loop.remove_writer)

    async def load(self) -> bytes:
        """Return all that comes until the end of the stream, or a little more than a state can have.

        Raises:
            VhostUserError: the other end does not give it in time.
        """
        data = b""
        with self._ending():
            async with asyncio.timeout(TRANSFER_TIMEOUT):
                while len(data) <= STATE_BYTES_MAX:
                    try:
                        piece = await self._read(STATE_BYTES_MAX + 1)
                    except BlockingIOError:
                        await until_ready(self._fd, self._loop.add_reader, self._loop.remove_reader)
                        continue
                    if not piece:
                        break
                    data += piece
        return data

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise VhostUserError(f"the device state was not passed within {TRANSFER_TIMEOUT:.0f} s") from None
        except OSError as error:
            raise VhostUserError(f"the device state cannot be passed: {error.strerror}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptor, unless that was done."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._socket is not None:
            self._helpers.close_by(self._socket.close)
        elif self._pipe is not None:
            self._helpers.close_by(self._pipe.close)
        else:
            self._helpers.close((fd,))

    async def _write(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._pipe is not None:
            return self._pipe.write(data)
        return await self._helpers.run("writing the device state", partial(os.write, self._fd, data))

    async def _read(self, length: int) -> bytes:
        if self._pipe is not None:
            return self._pipe.read(length)
        if self._socket is None:
            return await self._helpers.run("reading the device state", partial(os.read, self._fd, length))
        return receive_bytes(self._socket, length, self._helpers.close)
