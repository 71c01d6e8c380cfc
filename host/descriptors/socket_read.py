"""Reading a received or accepted socket without waiting, with the descriptors that ride on the bytes."""

import array
import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Final

from protocol.vhost_user import FDS_MAX

_ANCILLARY_SPACE: Final = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


def receive(sock: socket.socket, length: int) -> "tuple[bytes, array.array[int], int]":
    """Return up to ``length`` bytes, the descriptors that came with them, which are the caller's, and the flags of the
    message (recvmsg(2)).

    Raises:
        BlockingIOError: nothing is there yet.
        OSError: it cannot be read.
    """
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, message_flags, _ = sock.recvmsg(length, _ANCILLARY_SPACE, flags)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, fds, message_flags


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
