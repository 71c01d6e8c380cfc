"""Messages as bytes: how they are cut, their headers, their sizes (vhost-user, "Message Specification")."""

import fcntl
import socket
import struct
import termios
from contextlib import suppress
from typing import Final

from protocol.vhost_user import HEADER_SIZE, FrontendRequest, HeaderFlag, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import VringFile, VringState
from scripts.check.generic.judging import Bad, judged, raise_worst, refuses
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import NEED_REPLY, Kind, Target
from scripts.check.generic.watched_file import WatchedPipe
from scripts.check.machine.connection import REPLY_FLAGS
from scripts.check.machine.deadline import becomes_true
from scripts.check.verdict import Failed, Found, HungUpError, require, skip

UNKNOWN: Final = 1000

_PIECE: Final = 0.05
"""Seconds in which a back-end reads a piece of a message. One that waits for the whole leaves it there."""


def _unread(ours: socket.socket) -> int:
    """Return how much of what was sent the other side has not read, in the kernel's own units."""
    return int.from_bytes(fcntl.ioctl(ours, termios.TIOCOUTQ, bytes(4)), "little")  # SIOCOUTQ, unix(7)


@SUITE.case("message-in-pieces", clauses=("V-3",), edges=(1,))
def message_in_pieces(target: Target) -> None:
    """A message whose bytes come one by one is served once it is complete."""
    for data in (
        build_message(FrontendRequest.GET_FEATURES),
        build_message(FrontendRequest.SET_VRING_NUM, VringState(0, 64)),
    ):
        for at in range(len(data)):
            target.connection.send(data[at : at + 1])
            becomes_true(lambda: _unread(target.connection.socket) == 0, _PIECE)
    target.connection.reply_to(FrontendRequest.GET_FEATURES)
    target.check_alive()


@SUITE.case("two-messages-at-once", clauses=("V-3",), edges=(2,))
def two_messages_at_once(target: Target) -> None:
    """Messages that come in one piece are all served, in their order."""
    one, other = build_message(FrontendRequest.GET_FEATURES), build_message(FrontendRequest.GET_PROTOCOL_FEATURES)
    target.connection.send(one + other + one)
    for request in (FrontendRequest.GET_FEATURES, FrontendRequest.GET_PROTOCOL_FEATURES, FrontendRequest.GET_FEATURES):
        target.connection.reply_to(request)


@SUITE.case("descriptors-of-the-second-message", clauses=("V-5",), edges=(3,))
def descriptors_of_the_second_message(target: Target) -> None:
    """Descriptors belong to the message on whose first byte they ride, also right after one that has none."""
    target.negotiated()
    ring = target.ring()
    connection = target.connection
    connection.send(build_message(FrontendRequest.GET_FEATURES))
    connection.request(FrontendRequest.SET_VRING_CALL, VringFile(0, True), (ring.call,))
    connection.send(build_message(FrontendRequest.GET_FEATURES))
    for _ in range(2):
        connection.reply_to(FrontendRequest.GET_FEATURES)
    target.start(ring)
    target.stop(ring)


@SUITE.case("reply-header", clauses=("V-2",), edges=(17,))
def reply_header(target: Target) -> None:
    """Every reply repeats the request's number and has flags 0x5, also to a request that came with NEED_REPLY."""
    target.negotiate()
    connection = target.connection
    queries = [FrontendRequest.GET_FEATURES, FrontendRequest.GET_PROTOCOL_FEATURES]
    queries += [FrontendRequest.GET_QUEUE_NUM] * target.has(ProtocolFeature.MQ)
    queries += [FrontendRequest.GET_MAX_MEM_SLOTS] * target.has(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    for query in queries:
        connection.query(query)
    if target.acknowledges:
        connection.ask(FrontendRequest.SET_VRING_NUM, VringState(0, 64))
    echoing = []
    for query in queries:
        connection.request(query, need_reply=True)
        _, flags, _ = connection.raw_reply()
        if flags != REPLY_FLAGS:
            echoing.append(f"{query.name} {flags:#x}")
    target.check_alive()  # one reply only to each
    if echoing:
        raise Found(f"NEED_REPLY changes the flags of a request's own reply, which is to be 0x5: {', '.join(echoing)}")


@SUITE.case("version-other-than-1", clauses=("V-1",), edges=(4,))
def version_other_than_1(target: Target) -> None:
    """A header whose version is not 1 is refused, or ends the connection."""
    outcomes = []
    for number, version in enumerate((0, 2, 3)):
        if number:
            target.reconnect()
        target.negotiate()
        answer = target.attempt(FrontendRequest.SET_OWNER, flags=HeaderFlag.NEED_REPLY | version)
        if answer.kind is Kind.ACCEPTED:
            outcomes.append(Found(f"a message of version {version} was taken for one of version 1"))
        elif answer.kind is Kind.SILENT:
            outcomes.append(Found(f"a message of version {version} was not answered, and the connection goes on"))
    raise_worst(outcomes)


@SUITE.case("reply-flag-on-a-request", clauses=("V-1",), edges=(5,))
def reply_flag_on_a_request(target: Target) -> None:
    """A request that claims to be a reply is refused, ignored, or ends the connection."""
    target.negotiate()
    answer = target.attempt(FrontendRequest.SET_OWNER, flags=NEED_REPLY | HeaderFlag.REPLY)
    if answer.kind is Kind.ACCEPTED:
        raise Found("a request with the REPLY flag was carried out and acknowledged with 0")


@SUITE.case("reserved-header-flags", clauses=("V-1", "V-2"), edges=(6,))
def reserved_header_flags(target: Target) -> None:
    """Header bits that mean nothing are refused or ignored, and never appear in the reply."""
    target.negotiate()
    target.attempt(FrontendRequest.SET_OWNER, flags=NEED_REPLY | 0xFFFF_FFF0)


@SUITE.case("message-too-long", clauses=("V-4",), edges=(7,), peers=("DPDK", "libvhost-user"))
def message_too_long(target: Target) -> None:
    """A header that announces gigabytes ends the connection, or is refused, without waiting for them."""
    connection = target.connection
    try:
        connection.send(struct.pack("<III", FrontendRequest.SET_FEATURES, NEED_REPLY, 0xFFFF_FFF0))
        connection.send(bytes(HEADER_SIZE))
    except HungUpError:
        return
    if not connection.ends():
        raise Found("a header that announces 4294967280 bytes of payload leaves the connection waiting for them")


@SUITE.case("payload-too-short", clauses=("V-4",), edges=(8,), peers=("DPDK", "rust-vmm"))
def payload_too_short(target: Target) -> None:
    """A payload that is shorter than its message's is refused, not completed with whatever lies there."""
    bad = [
        Bad(f"{request.name} with {len(payload)} bytes of payload", request, payload)
        for request, payload in (
            (FrontendRequest.SET_FEATURES, bytes(4)),
            (FrontendRequest.SET_VRING_NUM, bytes(4)),
            (FrontendRequest.SET_VRING_ADDR, bytes(39)),
            (FrontendRequest.SET_VRING_ENABLE, b""),
            (FrontendRequest.SET_MEM_TABLE, struct.pack("<II", 1, 0)),
        )
    ]
    refuses(target, bad, target.negotiate)


@SUITE.case("payload-too-long", clauses=("V-4",), edges=(9,), peers=("rust-vmm",))
def payload_too_long(target: Target) -> None:
    """A payload that is longer than its message's is refused, or what is too much is left aside."""
    bad = [
        Bad("SET_FEATURES with 12 bytes", FrontendRequest.SET_FEATURES, struct.pack("<QI", target.features, 7)),
        Bad("SET_VRING_NUM with 16 bytes", FrontendRequest.SET_VRING_NUM, struct.pack("<IIQ", 0, 64, 7)),
        Bad("SET_OWNER with 4 bytes", FrontendRequest.SET_OWNER, bytes(4)),
    ]
    refuses(target, bad, target.negotiate, done=None)


@SUITE.case("end-in-mid-message", clauses=("V-8",), edges=(10,), peers=("libvhost-user",))
def end_in_mid_message(target: Target) -> None:
    """A connection that ends in the middle of a header or payload is over; the back-end serves the next."""
    for cut in (1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 3):
        target.connection.send(build_message(FrontendRequest.SET_FEATURES, 0)[:cut])
        target.reconnect()
    target.check_alive()


@SUITE.case("half-closed", clauses=("V-8",))
def half_closed(target: Target) -> None:
    """A front-end that shuts its sending side down is gone: the back-end ends the connection as well."""
    target.negotiate()
    target.connection.socket.shutdown(socket.SHUT_WR)
    require(target.connection.ends(), "the back-end keeps a connection on which nothing more can come")


@SUITE.case("unknown-request", clauses=("V-10",), edges=(15,), peers=("DPDK",))
def unknown_request(target: Target) -> None:
    """An unknown request with NEED_REPLY is refused, and the connection goes on."""
    bad = [Bad(f"request {number}", number) for number in (UNKNOWN, 0, 0xFFFF_FFFF)]
    refuses(target, [*bad, Bad("request 1000 with 32 bytes", UNKNOWN, bytes(32))], target.negotiate)


@SUITE.case("unknown-request-without-reply", clauses=("V-12",), edges=(16,))
def unknown_request_without_reply(target: Target) -> None:
    """An unknown request that wants no reply is ignored with its payload and its descriptors."""
    target.negotiate()
    pipe = target.keep(WatchedPipe())
    connection = target.connection
    try:
        connection.send(struct.pack("<III", UNKNOWN, 0x1, 16) + bytes(16), (pipe.fd,))
        target.check_alive()
    except HungUpError:
        raise Found("an unknown request ended the connection; QEMU then loses the device") from None
    finally:
        released = pipe.is_released()
        with suppress(OSError):
            connection.close() if not released else None
    require(released, "the descriptor of an unknown request is not closed", "V-6")


@SUITE.case("stalled-front-end", clauses=("V-7",), edges=(18,), quick=False)
def stalled_front_end(target: Target) -> None:
    """A front-end that stops in mid-message does not keep another from being served."""
    target.connection.send(build_message(FrontendRequest.SET_FEATURES, 0)[:7])
    other = target.backend.second()
    if other is None:
        skip("the back-end serves one front-end at a time")
    target.keep(other)
    other.patience = 0.5
    try:
        other.number(FrontendRequest.GET_FEATURES)
    except (HungUpError, Failed):
        skip("the back-end serves one front-end at a time")


@SUITE.case("need-reply-before-reply-ack", clauses=("V-11",))
def need_reply_before_reply_ack(target: Target) -> None:
    """NEED_REPLY asks for nothing while REPLY_ACK is not negotiated."""
    connection = target.connection
    connection.request(FrontendRequest.SET_VRING_NUM, VringState(0, 64), need_reply=True)
    connection.request(FrontendRequest.GET_FEATURES)
    number, _, payload = connection.raw_reply()
    if number == FrontendRequest.SET_VRING_NUM:
        raise Found(f"acknowledges ({payload.hex()}) on NEED_REPLY alone, though REPLY_ACK was never negotiated")
    require(number == FrontendRequest.GET_FEATURES, f"GET_FEATURES was answered by a reply to {number}")


@SUITE.case("own-reply-comes-once", clauses=("V-9", "V-2"))
def own_reply_comes_once(target: Target) -> None:
    """NEED_REPLY on a request that has a reply of its own does not bring a second one."""
    target.negotiated()
    target.start(target.ring())
    for request, payload in (
        (FrontendRequest.GET_FEATURES, None),
        (FrontendRequest.GET_PROTOCOL_FEATURES, None),
        (FrontendRequest.GET_VRING_BASE, VringState(0, 0)),
    ):
        answer = target.attempt(request, payload)
        outcome = judged(request.name, answer, None)
        if outcome is not None:
            raise outcome
        target.check_alive()
