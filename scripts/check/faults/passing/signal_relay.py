"""A kick or call descriptor replaced by one of the proxy's, so that notifications leave when the plan says so."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Final

from host.descriptors.pipe import Pipe
from host.descriptors.received_file import FileKind
from scripts.check.faults.fault_script import Signal
from scripts.check.faults.passing.open_file import OpenFile

_UNIT: Final = 8
"""Bytes of one notification on a pipe or a socket: User Mode Linux reads and writes 64-bit numbers on them."""

_MOST: Final = 512


class SignalRelay:
    """Stands between the two sides of one queue's kick or call descriptor ``file``, which is of ``kind``.

    :attr:`replacement` is for the back-end. ``on_signal`` is called with the number of notifications that came in.
    """

    def __init__(self, signal: Signal, file: OpenFile, kind: FileKind, on_signal: Callable[[int], None]) -> None:
        """Make the replacement. Raises OSError if the process has no descriptor left."""
        self._kind = kind
        self._on_signal = on_signal
        self._loop = asyncio.get_running_loop()
        reads_mine = signal is Signal.CALL
        mine, self.replacement = _make_pair(kind, mine_is_read=reads_mine)
        self._source, self._sink = (mine, file) if reads_mine else (file, mine)
        self._pipes = [Pipe(os.dup(end.fd)) for end in (self._source, self._sink)] if kind is FileKind.PIPE else []
        self._is_watched = False

    def watch(self) -> None:
        """Take notifications from now on."""
        self._loop.add_reader(self._source.fd, self.take)
        self._is_watched = True

    def take(self) -> None:
        """Take the notifications that wait, if any."""
        try:
            data = self._read()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_signal(
                int.from_bytes(data, "little") if self._kind is FileKind.EVENTFD else -(-len(data) // _UNIT)
            )
        else:
            self._stop()  # the other end was closed

    def _read(self) -> bytes:
        # Flags such as O_NONBLOCK would be the other side's too.
        if self._kind is FileKind.EVENTFD:
            number = bytearray(_UNIT)
            os.preadv(self._source.fd, [number], -1, os.RWF_NOWAIT)
            return bytes(number)
        if self._pipes:
            return self._pipes[0].read(_MOST)
        with _borrowed(self._source.fd) as sock:
            return sock.recv(_MOST, socket.MSG_DONTWAIT)

    def notify(self, count: int) -> None:
        """Pass ``count`` notifications. They are lost where there is no room, as they are without a proxy."""
        data = count.to_bytes(_UNIT, "little")
        with contextlib.suppress(OSError):
            if self._kind is FileKind.EVENTFD:
                poll = select.poll()
                poll.register(self._sink.fd, select.POLLOUT)
                if poll.poll(0):
                    os.write(self._sink.fd, data)
            elif self._pipes:
                self._pipes[1].write((1).to_bytes(_UNIT, "little") * min(count, _MOST // _UNIT))
            else:
                with _borrowed(self._sink.fd) as sock:
                    sock.send(
                        (1).to_bytes(_UNIT, "little") * min(count, _MOST // _UNIT),
                        socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                    )

    def pause(self) -> None:
        """Pass what waits, and leave what comes later in the descriptor: its queue was stopped."""
        if self._is_watched:
            self.take()
        self._stop()

    def _stop(self) -> None:
        if self._is_watched:
            self._loop.remove_reader(self._source.fd)
        self._is_watched = False

    def close(self) -> None:
        """Stop, and close the descriptors."""
        self._stop()
        while self._pipes:
            self._pipes.pop().close()


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _make_pair(kind: FileKind, *, mine_is_read: bool) -> tuple[OpenFile, OpenFile]:
    """Return the proxy's end and the back-end's."""
    if kind is FileKind.EVENTFD:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        return OpenFile(fd), OpenFile(os.dup(fd))
    if kind is FileKind.PIPE:
        reading, writing = (OpenFile(fd) for fd in os.pipe())
        return (reading, writing) if mine_is_read else (writing, reading)
    mine, theirs = socket.socketpair()
    return OpenFile(mine.detach()), OpenFile(theirs.detach())
