"""A front-end's connection to a back-end that sends what it likes: every wait ends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from protocol.vhost_user import FrontendRequest
from scripts.check.machine.connection import FrontendConnection
from scripts.check.verdict import NotAnswered

PATIENCE = 0.05


@pytest.fixture(name="sockets")
def make_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_flood_is_not_taken_for_an_end_and_does_not_last(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets

    def flood() -> None:
        try:
            while True:
                theirs.sendall(bytes(4096))
        except OSError:
            pass

    sender = threading.Thread(target=flood)
    with closing(FrontendConnection(ours)) as connection:
        sender.start()
        assert not connection.ends(PATIENCE)
    sender.join()


def test_a_reply_in_drops_has_the_time_of_one_reply(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(PATIENCE / 5):
            theirs.sendall(b"\1")

    sender = threading.Thread(target=drip)
    with closing(FrontendConnection(ours)) as connection:
        connection.patience = PATIENCE
        sender.start()
        with pytest.raises(NotAnswered, match=r"no reply within 0\.05 s"):
            connection.number(FrontendRequest.GET_FEATURES)
        is_over.set()
        sender.join()
