"""Reading a socket: bytes, the descriptors on them, and neither ever waited for."""

import asyncio
import os
import socket

import pytest

from host.descriptors.socket_read import receive, receive_bytes, until_ready


def test_descriptors_come_with_the_bytes_that_they_ride_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = os.eventfd(0)
        socket.send_fds(ours, [b"abc"], [fd, fd])
        os.close(fd)
        data, fds, flags = receive(theirs, 16)
        assert (data, len(fds), flags & socket.MSG_CTRUNC) == (b"abc", 2, 0)
        for number in fds:
            os.close(number)
        with pytest.raises(BlockingIOError):
            receive(theirs, 16)


def test_descriptors_that_do_not_belong_in_a_stream_are_closed() -> None:
    ours, theirs = socket.socketpair()
    closed: list[int] = []
    with ours, theirs:
        fd = os.eventfd(0)
        socket.send_fds(ours, [b"abc"], [fd])
        ours.send(b"def")
        assert receive_bytes(theirs, 16, closed.extend) == b"abc"
        assert receive_bytes(theirs, 16, closed.extend) == b"def"
    assert len(closed) == 1
    os.close(fd)
    os.close(closed[0])


@pytest.mark.asyncio
async def test_wait_ends_when_the_descriptor_is_ready_and_leaves_no_watch() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting = asyncio.create_task(until_ready(theirs.fileno(), loop.add_reader, loop.remove_reader))
        await asyncio.sleep(0)
        assert not waiting.done()
        ours.send(b"x")
        await waiting
        assert not loop.remove_reader(theirs.fileno())
