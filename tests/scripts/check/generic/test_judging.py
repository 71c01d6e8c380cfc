"""Wrong messages to a back-end that takes them in every possible way: what each way means."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from protocol.vhost_user import HEADER_SIZE, FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import VringState
from protocol.virtio import feature_mask
from scripts.check.generic.judging import Bad, judged, raise_worst, refuses
from scripts.check.generic.target import Answer, Facts, Kind, Target
from scripts.check.machine.connection import FrontendConnection
from scripts.check.verdict import Failed, Found, HungUpError, NotExercised

FEATURES = 1 << 30
NUM = FrontendRequest.SET_VRING_NUM
BAD = Bad("a bad size", NUM, VringState(0, 0))

Answering = Callable[[socket.socket], bool]
"""Answers SET_VRING_NUM; returns whether the connection goes on."""


def reply(request: int, payload: bytes, flags: int = 5) -> bytes:
    """Return a reply's bytes."""
    return struct.pack("<III", request, flags, len(payload)) + payload


class StubBackend:
    """A back-end of one connection that answers GET_FEATURES, and SET_VRING_NUM in its own way."""

    def __init__(self, answer: Answering) -> None:
        self.facts = Facts(features=FEATURES)
        self.ends_with_front_end = False
        self._answer = answer

    def serve(self, ours: socket.socket) -> None:
        """Serve until the other side is gone."""
        with ours:
            while header := ours.recv(HEADER_SIZE, socket.MSG_WAITALL):
                request, _, size = struct.unpack("<III", header)
                if size:
                    ours.recv(size, socket.MSG_WAITALL)
                if request == FrontendRequest.GET_FEATURES:
                    ours.sendall(reply(request, struct.pack("<Q", FEATURES)))
                elif request == NUM and not self._answer(ours):
                    return

    def reconnected(self) -> FrontendConnection:
        """There is one connection only."""
        raise AssertionError

    connected = reconnected

    def second(self) -> None:
        """There is one connection only."""

    def check_survival(self, target: Target) -> None:
        """Nothing crashes here."""


@contextmanager
def target_of(answer: Answering, *, acknowledges: bool = True) -> Iterator[Target]:
    """Yield a target whose back-end answers so."""
    ours, theirs = socket.socketpair()
    backend = StubBackend(answer)
    thread = threading.Thread(target=backend.serve, args=(theirs,))
    thread.start()
    target = Target(backend, FrontendConnection(ours))
    if acknowledges:
        target.protocol_features = feature_mask(ProtocolFeature.REPLY_ACK)
    try:
        yield target
    finally:
        target.close()
        thread.join()


def acknowledge(number: int, *, flags: int = 5, ending: bool = False) -> Answering:
    """Return a way to answer: with this number."""

    def answer(ours: socket.socket) -> bool:
        ours.sendall(reply(NUM, struct.pack("<Q", number), flags))
        return not ending

    return answer


def test_refusal_is_right() -> None:
    with target_of(acknowledge(1)) as target:
        refuses(target, [BAD, BAD], lambda: None)


def test_acknowledged_as_done_is_a_failure() -> None:
    with target_of(acknowledge(0)) as target, pytest.raises(Failed, match=r"^a bad size: answered with 0, as if"):
        refuses(target, [BAD], lambda: None)


def test_acknowledged_where_the_text_allows_it() -> None:
    with target_of(acknowledge(0)) as target:
        refuses(target, [BAD], lambda: None, done=None)
    with target_of(acknowledge(0)) as target, pytest.raises(Found):
        refuses(target, [BAD], lambda: None, done=Found)


def test_silence_is_a_failure() -> None:
    with target_of(lambda _: True) as target, pytest.raises(Failed, match="not answered"):
        refuses(target, [BAD], lambda: None)


def test_hanging_up_is_a_finding() -> None:
    with target_of(lambda _: False) as target, pytest.raises(Found, match="QEMU then loses the device"):
        refuses(target, [BAD], lambda: None)


def test_refusing_and_then_hanging_up_is_a_finding() -> None:
    with target_of(acknowledge(1, ending=True)) as target, pytest.raises(Found, match="refused, and"):
        refuses(target, [BAD], lambda: None)


def test_without_reply_ack_a_refusal_is_not_heard() -> None:
    with target_of(lambda _: True, acknowledges=False) as target, pytest.raises(NotExercised):
        refuses(target, [BAD], lambda: None)


def test_reply_with_flags_of_a_request_is_a_failure() -> None:
    with target_of(acknowledge(1, flags=1)) as target, pytest.raises(Failed, match="has flags 0x1"):
        target.attempt(NUM, VringState(0, 0))


def test_only_what_is_worst_is_told() -> None:
    outcomes = [judged(what, Answer(kind)) for what, kind in (("one", Kind.HUNG_UP), ("two", Kind.SILENT))]
    with pytest.raises(Failed) as caught:
        raise_worst([*outcomes, judged("three", Answer(Kind.SILENT)), None])
    assert caught.value.reason == "two, three: not answered, although sent with NEED_REPLY"


def test_what_was_not_heard_does_not_count_beside_what_is_right() -> None:
    raise_worst([None, judged("one", Answer(Kind.UNHEARD))])


def test_hang_up_names_the_message_that_it_followed() -> None:
    words = r"^the back-end ended the connection on SET_VRING_NUM of queue 0 with 64$"
    with target_of(lambda _ours: False) as target, pytest.raises(Failed, match=words):
        target.do(NUM, VringState(0, 64))
    with target_of(lambda _ours: False) as target, pytest.raises(HungUpError, match=words):
        target.connection.query(NUM, VringState(0, 64))
