"""A stream is cut into its messages, valid or not, and what is not a message is kept as it came."""

import pytest

from protocol.recording.records import FileFact, Noise, WireMessage
from protocol.recording.stream import NOISE_MAX, RecordedStream
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel, build_message
from protocol.vhost_user_payloads import VringState

STREAM = Channel.FRONTEND_REQUESTS
OWNER = build_message(FrontendRequest.SET_OWNER)
NUM = build_message(FrontendRequest.SET_VRING_NUM, VringState(2, 128), need_reply=True)


def message(t: float, request: int, flags: int, payload: bytes = b"", *files: FileFact) -> WireMessage:
    return WireMessage(t=t, session=3, stream=STREAM, request=request, flags=flags, payload=payload, files=files)


@pytest.mark.parametrize("piece", range(1, len(OWNER + NUM) + 1))
def test_messages_come_whole_however_the_stream_is_cut(piece: int) -> None:
    stream = RecordedStream(3, STREAM)
    data = OWNER + NUM
    found = [each for at in range(0, len(data), piece) for each in stream.feed(1, data[at : at + piece])]
    assert found == [message(1, 3, 1), message(1, 8, 9, bytes([2, 0, 0, 0, 128, 0, 0, 0]))]


def test_descriptors_belong_to_the_message_with_which_they_came() -> None:
    stream = RecordedStream(3, STREAM)
    memory = FileFact("memfd", 4096)
    assert list(stream.feed(1, NUM[:12], [memory])) == []
    assert list(stream.feed(2, NUM[12:])) == [message(2, 8, 9, NUM[12:], memory)]
    assert list(stream.feed(3, OWNER)) == [message(3, 3, 1)]


@pytest.mark.parametrize("header", [b"GET / HTTP/1.1\r\n", bytes(12), (1).to_bytes(4, "little") * 2 + b"\xff" * 4])
def test_what_follows_an_invalid_header_is_noise(header: bytes) -> None:
    stream = RecordedStream(3, STREAM)
    assert list(stream.feed(1, OWNER + header)) == [
        message(1, 3, 1),
        Noise(t=1, session=3, stream=STREAM, data=header),
    ]
    assert list(stream.feed(2, OWNER)) == [Noise(t=2, session=3, stream=STREAM, data=OWNER)]


def test_rest_of_a_stream_is_noise() -> None:
    stream = RecordedStream(3, STREAM)
    assert list(stream.feed(1, NUM[:14], [FileFact("pipe")])) == []
    assert list(stream.flush(2)) == [Noise(t=2, session=3, stream=STREAM, data=NUM[:14], files=(FileFact("pipe"),))]
    assert list(stream.flush(3)) == []


def test_long_noise_comes_in_pieces() -> None:
    stream = RecordedStream(3, STREAM)
    pieces = list(stream.feed(1, bytes(2 * NOISE_MAX + 1)))
    assert [len(piece.data) for piece in pieces if isinstance(piece, Noise)] == [NOISE_MAX, NOISE_MAX, 1]
