"""The channel for the back-end's own requests: never waits, loses nothing, repeats nothing while it is full."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from host.backend_channel import BackendChannel
from host.peers.helpers import Helpers
from protocol.errors import VhostUserError
from protocol.vhost_user import BackendRequest
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_message
from protocol.vhost_user_payloads import VringState
from tests.harness.processes import DEADLINE

CONFIG_CHANGE = build_message(BackendRequest.CONFIG_CHANGE_MSG)

MANY = 300
"""More requests than fit into the buffer of the tests' sockets."""


def call(index: int) -> bytes:
    return build_message(BackendRequest.VRING_CALL, VringState(index, 0))


class FrontEnd:
    """The other end of a channel."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(DEADLINE)
        self.gone = asyncio.Event()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.channel = BackendChannel(ours.detach(), self.gone.set, Helpers())
        self._reader = MessageReader(Channel.BACKEND_REQUESTS)

    def fill(self) -> None:
        """Send more requests than the small buffer of the socket takes."""
        for number in range(MANY):
            self.channel.send(call(number))

    async def next(self) -> bytes:
        """Return the next request."""
        while (message := self._reader.next_message()) is None:
            self._reader.feed(await asyncio.to_thread(self.socket.recv, self._reader.bytes_desired()))
        assert isinstance(message, Message)
        assert isinstance(message.request, BackendRequest)
        assert not message.need_reply
        return build_message(message.request, message.payload)


@pytest_asyncio.fixture
async def front_end() -> AsyncIterator[FrontEnd]:
    end = FrontEnd()
    yield end
    end.channel.close()
    end.socket.close()


@pytest.mark.asyncio
async def test_requests_arrive_in_order_and_answers_are_thrown_away(front_end: FrontEnd) -> None:
    for request in (CONFIG_CHANGE, call(2), CONFIG_CHANGE):
        front_end.channel.send(request)
        front_end.socket.sendall(bytes(20))
        assert await front_end.next() == request
    assert not front_end.gone.is_set()


@pytest.mark.asyncio
async def test_full_channel_holds_each_request_once_and_sends_it_when_there_is_room(front_end: FrontEnd) -> None:
    front_end.fill()
    for _ in range(1000):
        front_end.channel.send(CONFIG_CHANGE)
        front_end.channel.send(call(MANY))
    received = [await front_end.next() for _ in range(MANY + 2)]
    assert received == [*(call(number) for number in range(MANY)), CONFIG_CHANGE, call(MANY)]
    front_end.channel.send(call(1))
    assert await front_end.next() == call(1)


@pytest.mark.asyncio
async def test_requests_of_many_threads_stay_whole(front_end: FrontEnd) -> None:
    def send(index: int) -> None:
        for number in range(200):
            front_end.channel.send(call(1000 * index + number))

    threads = [threading.Thread(target=send, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    received = {await front_end.next() for _ in range(800)}
    for thread in threads:
        thread.join()
    assert received == {call(1000 * index + number) for index in range(4) for number in range(200)}


@pytest.mark.asyncio
async def test_front_end_that_closes_its_end_is_noticed_and_costs_nothing(front_end: FrontEnd) -> None:
    front_end.fill()
    front_end.socket.close()
    async with asyncio.timeout(DEADLINE):
        await front_end.gone.wait()
    front_end.channel.send(CONFIG_CHANGE)
    front_end.channel.close()


@pytest.mark.asyncio
async def test_descriptor_other_than_a_socket_stays_its_senders() -> None:
    fd = os.eventfd(0)
    with pytest.raises(VhostUserError, match="not a unix stream socket"):
        BackendChannel(fd, lambda: None, Helpers())
    os.close(fd)
