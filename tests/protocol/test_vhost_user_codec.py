"""The message codec: any fragmentation, any fault; what is delimited never takes the stream out of step."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import FramingError, VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import BackendRequest, FrontendRequest, Request
from protocol.vhost_user_codec import (
    BadMessage,
    Channel,
    Message,
    MessageReader,
    build_ack,
    build_message,
    build_own_reply,
    build_refusal,
)
from protocol.vhost_user_payloads import DeviceConfig, InflightDescription, MemoryTable, VringFile, VringState
from tests.protocol.messages import (
    ALL_REQUESTS,
    fd_count,
    payload_of,
    raw,
    reply_of,
)

REQUESTS_OF: dict[Channel, st.SearchStrategy[Request]] = {
    Channel.FRONTEND_REQUESTS: st.sampled_from(FrontendRequest),
    Channel.BACKEND_REQUESTS: st.sampled_from(BackendRequest),
}


def read(data: bytes, fds: Iterable[int] = (), channel: Channel = Channel.FRONTEND_REQUESTS) -> Message | BadMessage:
    """Return the one message that ``data`` is."""
    reader = MessageReader(channel)
    reader.feed(data, fds)
    message = reader.next_message()
    assert message is not None
    assert not reader.in_message
    assert reader.take_fds() == ()
    return message


def read_bad(data: bytes, fds: Iterable[int] = (), channel: Channel = Channel.FRONTEND_REQUESTS) -> BadMessage:
    """Return the one bad message that ``data`` is."""
    message = read(data, fds, channel)
    assert isinstance(message, BadMessage), message
    return message


@st.composite
def sent_messages(draw: st.DrawFn, channel: Channel = Channel.FRONTEND_REQUESTS) -> tuple[bytes, Message]:
    """A good request as bytes, and the message that it has to become, with made-up file descriptor numbers."""
    request = draw(REQUESTS_OF[channel])
    payload = draw(payload_of(request))
    need_reply = draw(st.booleans())
    count = fd_count(request, payload)
    fds = tuple(draw(st.lists(st.integers(3, 10**6), min_size=count, max_size=count)))
    data = build_message(request, payload, need_reply=need_reply)
    return data, Message(request=request, payload=payload, need_reply=need_reply, fds=fds)


@given(data=st.data())
@pytest.mark.parametrize("request_", ALL_REQUESTS, ids=lambda request: request.name)
@settings(max_examples=10)
def test_requests_survive_the_wire(request_: Request, data: st.DataObject) -> None:
    channel = Channel.FRONTEND_REQUESTS if isinstance(request_, FrontendRequest) else Channel.BACKEND_REQUESTS
    payload, need_reply = data.draw(payload_of(request_)), data.draw(st.booleans())
    fds = tuple(range(100, 100 + fd_count(request_, payload)))
    message = read(build_message(request_, payload, need_reply=need_reply), fds, channel)
    assert message == Message(request=request_, payload=payload, need_reply=need_reply, fds=fds)


@given(data=st.data())
@pytest.mark.parametrize("request_", ALL_REQUESTS, ids=lambda request: request.name)
@settings(max_examples=5)
def test_replies_survive_the_wire(request_: Request, data: st.DataObject) -> None:
    channel = Channel.BACKEND_REPLIES if isinstance(request_, FrontendRequest) else Channel.FRONTEND_REPLIES
    payload = data.draw(reply_of(request_))
    reply = build_ack(request_, payload) if isinstance(payload, int) else build_own_reply(request_, payload)
    assert read(reply, (), channel) == Message(request=request_, payload=payload)


@given(sent=st.lists(sent_messages(), min_size=1, max_size=6), data=st.data())
def test_messages_read_as_a_shell_reads_them_keep_their_own_descriptors(
    sent: list[tuple[bytes, Message]], data: st.DataObject
) -> None:
    # The kernel never merges two messages with descriptors; otherwise it gives any number of the bytes asked for.
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    received: list[Message | BadMessage | None] = []
    for stream, message in sent:
        fds = message.fds
        while stream:
            piece = data.draw(st.integers(1, min(reader.bytes_desired(), len(stream))))
            reader.feed(stream[:piece], fds)
            stream, fds = stream[piece:], ()
            if (whole := reader.next_message()) is not None:
                received.append(whole)
        assert not reader.in_message
    assert received == [message for _, message in sent]
    assert reader.take_fds() == ()


@given(sent=st.lists(sent_messages(), min_size=1, max_size=6), cuts=st.sets(st.integers(1, 2000), max_size=12))
def test_stream_without_descriptors_may_be_cut_anywhere(sent: list[tuple[bytes, Message]], cuts: set[int]) -> None:
    sent = [(data, message) for data, message in sent if not message.fds]
    stream = b"".join(data for data, _ in sent)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    received: list[Message | BadMessage] = []
    for begin, end in pairwise(edges):
        reader.feed(stream[begin:end])
        while (message := reader.next_message()) is not None:
            received.append(message)
    assert received == [message for _, message in sent]


@pytest.mark.long
@given(stream=st.lists(st.one_of(sent_messages().map(lambda sent: sent[0]), st.binary(max_size=40))), data=st.data())
def test_reader_takes_any_bytes_or_says_why_not(stream: list[bytes], data: st.DataObject) -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    rest = b"".join(stream)
    while rest:
        piece = data.draw(st.integers(1, len(rest)))
        reader.feed(rest[:piece])
        rest = rest[piece:]
        try:
            while reader.next_message() is not None:
                pass
        except FramingError:
            return
        assert reader.bytes_desired() >= 1


def test_bytes_desired_never_reaches_into_the_next_message() -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    data = build_message(FrontendRequest.SET_FEATURES, 5)
    assert reader.bytes_desired() == 12
    reader.feed(data[:5], (7,))
    assert reader.next_message() is None
    assert (reader.bytes_desired(), reader.in_message) == (7, True)
    reader.feed(data[5:12])
    assert reader.next_message() is None
    assert (reader.bytes_desired(), reader.in_message) == (8, True)
    reader.feed(data[12:19])
    assert reader.next_message() is None
    assert reader.bytes_desired() == 1
    reader.feed(data[19:])
    assert isinstance(reader.next_message(), BadMessage)  # it takes no file descriptor
    assert (reader.bytes_desired(), reader.in_message) == (12, False)


def test_descriptors_of_a_message_that_never_ends_are_handed_out_at_the_end() -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    reader.feed(build_message(FrontendRequest.SET_VRING_KICK, VringFile(0, True))[:15], (5,))
    assert reader.next_message() is None
    assert reader.take_fds() == (5,)
    assert reader.take_fds() == ()


# -- file descriptors -----------------------------------------------------------------------------------------------


@given(sent=sent_messages(), count=st.integers(0, 12))
@settings(max_examples=300)
def test_wrong_number_of_descriptors_is_refused_and_hands_them_out(sent: tuple[bytes, Message], count: int) -> None:
    data, good = sent
    fds = tuple(range(50, 50 + count))
    message = read(data, fds)
    assert message.fds == fds
    may_come_without = good.request is FrontendRequest.REM_MEM_REG and count == 0
    if count == len(good.fds) or may_come_without:
        assert isinstance(message, Message)
    else:
        assert isinstance(message, BadMessage)
        assert f"came with {count} file descriptors" in str(message.error)


@pytest.mark.parametrize("ring_file", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
@pytest.mark.parametrize(
    ("has_file", "count", "good"),
    [(True, 1, True), (False, 0, True), (True, 0, False), (False, 1, False), (True, 253, False)],
)
def test_bit_8_says_whether_a_descriptor_comes(ring_file: str, has_file: bool, count: int, good: bool) -> None:
    payload = VringFile(1, has_file)
    message = read(build_message(FrontendRequest[ring_file], payload), range(10, 10 + count))
    assert isinstance(message, Message) is good
    assert len(message.fds) == count


# -- payloads -------------------------------------------------------------------------------------------------------


def table_payload(count: int, regions: int, extra: int = 0) -> bytes:
    """Return a memory table that says ``count`` regions, holds ``regions`` and ends in ``extra`` bytes."""
    return count.to_bytes(8, "little") + b"".join(bytes([n + 1]) * 32 for n in range(regions)) + b"\xee" * extra


def test_user_mode_linux_sends_a_memory_table_of_72_bytes_with_one_region() -> None:
    message = read(raw(5, table_payload(1, 1, extra=32)), (9,))
    address = int.from_bytes(b"\1" * 8, "little")
    region = MemoryRegion(
        guest_address=GuestAddress(address), size=address, user_address=UserAddress(address), mmap_offset=address
    )
    assert message == Message(request=FrontendRequest.SET_MEM_TABLE, payload=MemoryTable((region,)), fds=(9,))


@pytest.mark.parametrize(("count", "regions"), [(1, 0), (2, 1), (8, 7), (2**32 - 1, 4)])
def test_memory_table_shorter_than_it_says_is_refused(count: int, regions: int) -> None:
    bad = read_bad(raw(5, table_payload(count, regions)), range(20, 20 + regions))
    assert "too few for a memory table" in str(bad.error)
    assert len(bad.fds) == regions


@given(data=st.data())
@pytest.mark.parametrize("request_", ALL_REQUESTS, ids=lambda request: request.name)
@settings(max_examples=10)
def test_payload_of_a_wrong_length_is_refused(request_: Request, data: st.DataObject) -> None:
    channel = Channel.FRONTEND_REQUESTS if isinstance(request_, FrontendRequest) else Channel.BACKEND_REQUESTS
    payload = data.draw(payload_of(request_))
    fds = range(30, 30 + fd_count(request_, payload))
    good = build_message(request_, payload)[12:]
    if good:
        shorter = raw(request_, good[: data.draw(st.integers(0, len(good) - 1))])
        assert "too few" in str(read_bad(shorter, fds, channel).error)
    if request_ is not FrontendRequest.SET_MEM_TABLE:
        longer = raw(request_, good + data.draw(st.binary(min_size=1, max_size=32)))
        assert "too many" in str(read_bad(longer, fds, channel).error) or not good


def test_queue_number_with_reserved_bits_is_refused() -> None:
    assert "reserved bits" in str(read_bad(raw(12, (0x200).to_bytes(8, "little"))).error)
    assert "reserved bits" in str(read_bad(raw(12, (1 << 32).to_bytes(8, "little")), (4,)).error)


@pytest.mark.parametrize("said", [0, 3, 5, 257, 2**32 - 1])
def test_configuration_bytes_that_are_not_as_many_as_said_are_refused(said: int) -> None:
    payload = (0).to_bytes(4, "little") + said.to_bytes(4, "little") + bytes(4) + b"1234"
    bad = read_bad(raw(24, payload))
    assert ("too many" if said < 4 else "too few") in str(bad.error)


# -- what is wrong with one message is over with it -----------------------------------------------------------------

GOOD = build_message(FrontendRequest.GET_FEATURES)

WRONG = {
    "unknown request": raw(1000, b"12345678", flags=0x9),
    "request of another device": raw(19, bytes(8)),
    "too short": raw(2, b"1234"),
    "too long": raw(2, b"123456789"),
    "payload where none belongs": raw(1, b"1"),
    "descriptor missing": build_message(FrontendRequest.SET_BACKEND_REQ_FD),
    "reserved flags": raw(1000, flags=0xFFFF_FFF1),
}


@pytest.mark.parametrize("name", WRONG)
def test_message_after_a_bad_one_is_read(name: str) -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    reader.feed(WRONG[name] + GOOD)
    assert isinstance(reader.next_message(), BadMessage)
    assert reader.next_message() == Message(request=FrontendRequest.GET_FEATURES)
    assert reader.next_message() is None


def test_bad_message_says_which_request_it_was_and_whether_an_answer_is_wanted() -> None:
    bad = read_bad(raw(1000, bytes(20), flags=0x9), (3, 4))
    assert (bad.request, bad.need_reply, bad.fds) == (1000, True, (3, 4))
    assert str(bad.error) == "unknown request 1000"
    assert not read_bad(raw(1000)).need_reply


def test_reserved_flags_of_a_good_message_are_ignored() -> None:
    assert read(raw(1, flags=0xFFFF_FFF1)) == Message(request=FrontendRequest.GET_FEATURES)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(1, flags=0x0), "version 0"),
        (raw(1, flags=0x2), "version 2"),
        (raw(1, flags=0xB), "version 3"),
        (raw(1, flags=0x5), "a reply among front-end requests"),
        (raw(5, size=4097), "message of 4097 bytes exceeds 4096"),
        (raw(5, size=2**32 - 1), "message of 4294967295 bytes exceeds 4096"),
    ],
)
def test_invalid_header_ends_the_stream_before_its_payload_comes(data: bytes, reason: str) -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    reader.feed(data, (8,))
    with pytest.raises(FramingError, match=reason):
        reader.next_message()
    assert reader.take_fds() == (8,)


def test_request_among_replies_ends_the_stream() -> None:
    reader = MessageReader(Channel.BACKEND_REPLIES)
    reader.feed(GOOD)
    with pytest.raises(FramingError, match="a request among back-end replies"):
        reader.next_message()


def test_longest_payload_is_taken_whole() -> None:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    reader.feed(raw(5, table_payload(0, 0, extra=4088)))
    assert reader.next_message() == Message(request=FrontendRequest.SET_MEM_TABLE, payload=MemoryTable(()))


# -- what we send ---------------------------------------------------------------------------------------------------


def test_request_has_flags_1_and_9_when_an_answer_is_wanted() -> None:
    assert build_message(FrontendRequest.SET_OWNER) == raw(3, flags=0x1)
    assert build_message(FrontendRequest.SET_OWNER, need_reply=True) == raw(3, flags=0x9)
    assert build_message(BackendRequest.CONFIG_CHANGE_MSG) == raw(2, flags=0x1)


def test_reply_has_exactly_flags_5_and_the_number_of_its_request() -> None:
    assert build_ack(FrontendRequest.SET_MEM_TABLE, 0) == raw(5, bytes(8), flags=0x5)
    assert build_ack(1000, 1) == raw(1000, (1).to_bytes(8, "little"), flags=0x5)
    assert build_own_reply(FrontendRequest.GET_FEATURES, 0x40000000) == raw(
        1, (0x40000000).to_bytes(8, "little"), flags=0x5
    )
    assert build_own_reply(FrontendRequest.GET_VRING_BASE, VringState(2, 7)) == raw(
        11, bytes.fromhex("02000000 07000000"), flags=0x5
    )


def test_refused_get_config_is_an_empty_payload() -> None:
    assert build_refusal(FrontendRequest.GET_CONFIG) == raw(24, flags=0x5)
    assert read(raw(24, flags=0x5), (), Channel.BACKEND_REPLIES) == Message(request=FrontendRequest.GET_CONFIG)


@given(offset=st.integers(0, 256), data=st.binary(max_size=256))
def test_get_config_reply_is_as_long_as_its_request(offset: int, data: bytes) -> None:
    request = build_message(FrontendRequest.GET_CONFIG, DeviceConfig(offset=offset, flags=0, data=bytes(len(data))))
    reply = build_own_reply(FrontendRequest.GET_CONFIG, DeviceConfig(offset=offset, flags=0, data=data))
    assert len(request) == len(reply) == 12 + 12 + len(data)
    assert reply[24:] == data


def test_reply_may_bring_a_descriptor() -> None:
    inflight = InflightDescription(mmap_size=4096, mmap_offset=0, num_queues=3, queue_size=256)
    reply = build_own_reply(FrontendRequest.GET_INFLIGHT_FD, inflight)
    assert len(reply) == 12 + 24
    assert read(reply, (6,), Channel.BACKEND_REPLIES).fds == (6,)


def test_error_of_a_bad_message_is_about_the_message_not_the_stream() -> None:
    error = read_bad(raw(1000)).error
    assert isinstance(error, VhostUserError)
    assert not isinstance(error, FramingError)
