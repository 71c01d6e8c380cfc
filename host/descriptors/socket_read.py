"""Reading a received or accepted socket without waiting, with the descriptors that ride on the bytes."""

import array
import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Final

from protocol.message_limits import FDS_MAX

_SO_PEEK_OFF: Final = 42
"""Socket option (Linux 3.4). Python has no name for it."""

_ANCILLARY_SPACE: Final = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


def receive(sock: socket.socket, length: int, *, peek: bool = False) -> "tuple[bytes, array.array[int], int]":
    """Return up to ``length`` bytes, the descriptors that came with them, which are the caller's, and the flags of the
    message (recvmsg(2)). With ``peek`` they stay on the socket too.

    Raises:
        BlockingIOError: nothing is there yet.
        OSError: it cannot be read.
    """
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT | (socket.MSG_PEEK if peek else 0)
    data, ancillary, message_flags, _ = sock.recvmsg(length, _ANCILLARY_SPACE, flags)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, fds, message_flags


def bytes_seen(sock: socket.socket) -> int:
    """Return how many bytes of those that :func:`note_seen` has noted are not taken yet. The kernel counts them with
    the socket, so that the count outlives the process."""
    return max(sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF), 0)


def note_seen(sock: socket.socket, length: int) -> None:
    """Note that the next ``length`` bytes were seen, and are about to be taken."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, length)


def take_seen(sock: socket.socket, length: int) -> None:
    """Take ``length`` bytes that were seen from the socket, and what else came with them."""
    while length:
        # Without room for descriptors: those that were seen are open by now, and these are dropped.
        data = sock.recv(length, socket.MSG_DONTWAIT)
        if not data:
            return
        length -= len(data)


def receive_bytes(sock: socket.socket, length: int, close: Callable[[Iterable[int]], None]) -> bytes:
    """Return up to ``length`` bytes of a stream without descriptors. Any that come are closed by ``close``. Raises like
    :func:`receive`."""
    data, fds, _ = receive(sock, length)
    if fds:
        close(fds)
    return data


async def until_ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    """Return when ``fd`` is ready. ``add`` and ``remove`` are the event loop's for readers or for writers."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
