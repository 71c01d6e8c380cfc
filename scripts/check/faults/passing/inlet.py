"""Reads one stream of a session and cuts it into pieces with their descriptors."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator

from host.descriptors.socket_read import receive, until_ready
from protocol.vhost_user_codec import Channel
from scripts.check.faults.passing.message_pieces import MessageCutter, Piece
from scripts.check.faults.passing.open_file import OpenFile


async def read_pieces(sock: socket.socket, channel: Channel) -> AsyncIterator[Piece]:
    """Yield the pieces of what ``sock`` receives, until its end. A connection that was reset has ended."""
    cutter = MessageCutter(channel)
    loop = asyncio.get_running_loop()
    while True:
        await until_ready(sock.fileno(), loop.add_reader, loop.remove_reader)
        try:
            data, fds, _ = receive(sock, cutter.bytes_desired())
        except BlockingIOError:
            continue
        except OSError:
            break
        if not data:
            break
        # Without a reference that outlives a piece: its descriptors are closed with the last one.
        pieces = deque(cutter.feed(data, [OpenFile(fd) for fd in fds]))
        while pieces:
            yield pieces.popleft()
    for piece in cutter.rest():
        yield piece
