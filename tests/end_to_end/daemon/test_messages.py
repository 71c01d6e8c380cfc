"""Single messages, whole, cut, wrong and hostile: the framing of the stream, its descriptors, the negotiation."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from host.balloon.offered_features import OFFERED
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import DeviceConfig, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.end_to_end.conftest import Scene
from tests.harness.processes import open_fds, unchanged_fds, until
from tests.harness.virtual_machine import DATA_AT, INFLATE, REPORTING, WANTED, Client

GET_FEATURES = build_message(FrontendRequest.GET_FEATURES)
GET_QUEUE_NUM = build_message(FrontendRequest.GET_QUEUE_NUM)
REPLY_ACK = feature_mask(ProtocolFeature.REPLY_ACK)


def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("<III", request, flags, size)


@pytest.fixture
def client(scene: Scene) -> Client:
    """A client that has negotiated acknowledgements and nothing else."""
    client = scene.client()
    assert client.ask(FrontendRequest.SET_PROTOCOL_FEATURES, REPLY_ACK) == 0
    return client


@pytest.fixture
def many_fds() -> Iterator[list[int]]:
    """As many descriptors as the kernel passes in one message."""
    fds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(253)]
    yield fds
    for fd in fds:
        os.close(fd)


def assert_in_step(client: Client) -> None:
    """Check that the connection still works and owes no reply."""
    assert client.ask(FrontendRequest.GET_QUEUE_NUM) == 5


# -- framing ----------------------------------------------------------------------------------------------------------


def test_message_in_single_bytes_is_understood(client: Client) -> None:
    for byte in build_message(FrontendRequest.SET_VRING_NUM, VringState(2, 128), need_reply=True):
        client.send(bytes([byte]))
    assert client.reply().payload == 0
    assert_in_step(client)


def test_messages_in_one_piece_are_answered_in_order(client: Client) -> None:
    client.send(GET_FEATURES + GET_QUEUE_NUM + GET_FEATURES)
    assert [client.reply().request for _ in range(3)] == [
        FrontendRequest.GET_FEATURES,
        FrontendRequest.GET_QUEUE_NUM,
        FrontendRequest.GET_FEATURES,
    ]


def test_descriptors_belong_to_the_message_whose_first_byte_they_ride_on(scene: Scene, client: Client) -> None:
    fd = os.eventfd(0)
    with unchanged_fds(scene.daemon.pid):
        client.send(build_message(FrontendRequest.SET_OWNER, need_reply=True))
        client.request(FrontendRequest.SET_VRING_CALL, VringFile(2, True), [fd], need_reply=True)
        client.send(build_message(FrontendRequest.SET_OWNER, need_reply=True))
        assert [client.reply().payload for _ in range(3)] == [0, 0, 0]
        assert client.ask(FrontendRequest.SET_VRING_CALL, VringFile(2, False)) == 0
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(1, 0x0, 0), "message version 0 is not 1"),
        (header(1, 0x2, 0), "message version 2 is not 1"),
        (header(1, 0x5, 0), "a reply among front-end requests"),
        (header(5, 0x1, 4097), "message of 4097 bytes exceeds 4096"),
        (header(5, 0x1, 0xFFFFFFFF), "message of 4294967295 bytes exceeds 4096"),
    ],
)
def test_header_that_cannot_be_believed_ends_the_session(scene: Scene, data: bytes, reason: str) -> None:
    client = scene.client()
    fd = os.eventfd(0)
    client.send(data, [fd, fd])
    os.close(fd)
    assert client.is_closed_by_peer()
    assert scene.end_of(client)["reason"] == reason


def test_reserved_header_flags_are_ignored_and_never_echoed(client: Client) -> None:
    client.send(header(FrontendRequest.SET_OWNER, 0xFFFFFF09, 0))
    assert client.raw_reply() == (FrontendRequest.SET_OWNER, 0x5, struct.pack("<Q", 0))
    client.send(header(FrontendRequest.GET_QUEUE_NUM, 0x9, 0))
    assert client.raw_reply() == (FrontendRequest.GET_QUEUE_NUM, 0x5, struct.pack("<Q", 5))


@pytest.mark.parametrize("length", [1, 11, 12, 15, 19])
def test_stream_cut_inside_a_message_ends_quietly(scene: Scene, length: int) -> None:
    client = scene.client()
    fd = os.eventfd(0)
    client.send(build_message(FrontendRequest.SET_VRING_CALL, VringFile(2, True))[:length], [fd])
    os.close(fd)
    client.close()
    assert scene.end_of(client)["reason"] == "front-end gone in the middle of a message"


@pytest.mark.parametrize(
    ("request_number", "size"),
    [
        (FrontendRequest.SET_FEATURES, 7),
        (FrontendRequest.SET_FEATURES, 9),
        (FrontendRequest.SET_FEATURES, 0),
        (FrontendRequest.SET_OWNER, 8),
        (FrontendRequest.SET_VRING_NUM, 4),
        (FrontendRequest.SET_VRING_NUM, 12),
        (FrontendRequest.SET_VRING_ADDR, 39),
        (FrontendRequest.SET_VRING_ADDR, 48),
        (FrontendRequest.SET_CONFIG, 11),
        (FrontendRequest.SET_MEM_TABLE, 4),
        (FrontendRequest.SET_INFLIGHT_FD, 20),
        (1000, 0),
        (1000, 4096),
        (FrontendRequest.SET_STATUS, 8),
    ],
)
def test_message_that_makes_no_sense_is_refused(scene: Scene, client: Client, request_number: int, size: int) -> None:
    """With NEED_REPLY it is answered with 1, without it is passed over: the stream stays in step either way."""
    client.send(header(request_number, 0x9, size) + bytes(size))
    assert client.raw_reply() == (request_number, 0x5, struct.pack("<Q", 1))
    client.send(header(request_number, 0x1, size) + bytes(size))
    assert_in_step(client)
    name = request_number.name if isinstance(request_number, FrontendRequest) else str(request_number)
    scene.expect(client, *[("message_refused", name)] * 2)


@pytest.mark.parametrize("need_reply", [False, True])
def test_refusal_that_cannot_be_told_ends_the_session(scene: Scene, need_reply: bool) -> None:
    """Any payload would be taken for the answer to the question."""
    client = scene.client()
    client.request(FrontendRequest.GET_VRING_BASE, VringState(9, 0), need_reply=need_reply)
    assert client.is_closed_by_peer()
    scene.expect(client, ("message_refused", "GET_VRING_BASE"))
    assert "queue 9 does not exist" in scene.end_of(client)["reason"]


# -- file descriptors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_number", "payload", "count"),
    [
        (FrontendRequest.SET_FEATURES, OFFERED, 1),
        (FrontendRequest.SET_OWNER, None, 253),
        (FrontendRequest.SET_VRING_KICK, VringFile(2, True), 0),
        (FrontendRequest.SET_VRING_KICK, VringFile(2, False), 1),
        (FrontendRequest.SET_VRING_KICK, VringFile(2, True), 2),
        (FrontendRequest.SET_VRING_KICK, VringFile(2, True), 253),
        (FrontendRequest.SET_VRING_CALL, VringFile(2, True), 253),
        (FrontendRequest.SET_VRING_ERR, VringFile(9, True), 1),
        (FrontendRequest.SET_BACKEND_REQ_FD, None, 0),
        (FrontendRequest.SET_BACKEND_REQ_FD, None, 2),
        (FrontendRequest.SET_BACKEND_REQ_FD, None, 1),  # an eventfd is no socket
        (FrontendRequest.SET_INFLIGHT_FD, None, 253),
    ],
)
def test_unwanted_descriptors_are_closed_at_once(
    scene: Scene,
    client: Client,
    many_fds: list[int],
    request_number: FrontendRequest,
    payload: int | VringFile | None,
    count: int,
) -> None:
    with unchanged_fds(scene.daemon.pid):
        if request_number is FrontendRequest.SET_INFLIGHT_FD:
            client.send(header(request_number, 0x9, 24) + bytes(24), many_fds[:count])
            assert client.reply().payload == 1
        else:
            assert client.ask(request_number, payload, many_fds[:count]) == 1
        assert_in_step(client)
    scene.expect(client, ("message_refused", request_number.name))


def test_descriptors_piled_up_on_one_message_end_the_session(scene: Scene, many_fds: list[int]) -> None:
    """A descriptor table is shared by all virtual machines: one message may not fill it byte by byte."""
    client = scene.client()
    before = len(open_fds(scene.daemon.pid))
    data = build_message(FrontendRequest.SET_VRING_KICK, VringFile(2, True))
    client.send(data[:1], many_fds)
    client.send(data[1:2], many_fds)
    assert client.is_closed_by_peer()
    assert "506 file descriptors on one message" in scene.end_of(client)["reason"]
    until(lambda: len(open_fds(scene.daemon.pid)) < before, "every descriptor is closed")


def test_received_descriptors_are_closed_in_child_processes(scene: Scene, client: Client) -> None:
    fd = os.eventfd(0)
    before = open_fds(scene.daemon.pid)
    assert client.ask(FrontendRequest.SET_VRING_CALL, VringFile(2, True), [fd]) == 0
    os.close(fd)
    received = open_fds(scene.daemon.pid).keys() - before.keys()
    assert len(received) == 1
    with open(f"/proc/{scene.daemon.pid}/fdinfo/{received.pop()}", encoding="ascii") as info:
        flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
    assert flags & os.O_CLOEXEC


def test_descriptor_sent_in_every_role(scene: Scene, client: Client) -> None:
    ours, theirs = socket.socketpair()
    requests = (FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR)
    before = len(open_fds(scene.daemon.pid))
    with ours, theirs:
        for request in requests * 3:
            assert client.ask(request, VringFile(2, True), [theirs.fileno()]) == 0
        assert client.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]) == 0
    assert_in_step(client)
    assert len(open_fds(scene.daemon.pid)) <= before + 4


def test_back_end_channel_is_replaced_and_may_vanish(scene: Scene, client: Client) -> None:
    before = len(open_fds(scene.daemon.pid))
    for _ in range(3):
        ours, theirs = socket.socketpair()
        assert client.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]) == 0
        theirs.close()
        assert len(open_fds(scene.daemon.pid)) == before + 1
        ours.sendall(b"chatter")
        ours.close()
        assert_in_step(client)


# -- negotiation ------------------------------------------------------------------------------------------------------


def test_protocol_features_come_before_features(scene: Scene) -> None:
    client = scene.client()
    offered = client.ask(FrontendRequest.GET_PROTOCOL_FEATURES)
    assert isinstance(offered, int)
    assert client.ask(FrontendRequest.SET_PROTOCOL_FEATURES, offered) == 0  # acknowledged though it negotiates that
    assert client.ask(FrontendRequest.SET_FEATURES, OFFERED) == 0


def test_protocol_features_that_were_not_offered(scene: Scene, client: Client) -> None:
    gpa_addresses = feature_mask(ProtocolFeature.REPLY_ACK) | 1 << 21  # ring addresses that mean something else
    assert client.ask(FrontendRequest.SET_PROTOCOL_FEATURES, gpa_addresses) == 1
    assert client.ask(FrontendRequest.SET_OWNER) == 0  # the old set, acknowledgements, is still in force
    scene.expect(client, ("message_refused", "SET_PROTOCOL_FEATURES"))


@pytest.mark.parametrize(
    "features",
    [
        OFFERED | feature_mask(FeatureBit.RING_PACKED),
        OFFERED | feature_mask(BalloonFeature.PAGE_POISON),
        OFFERED | 1 << 63,
    ],
)
def test_features_that_cannot_be_had(scene: Scene, client: Client, features: int) -> None:
    assert client.ask(FrontendRequest.SET_FEATURES, features) == 1
    assert client.ask(FrontendRequest.GET_FEATURES) == OFFERED
    scene.expect(client, ("message_refused", "SET_FEATURES"))
    assert [e for e in scene.daemon.events.all("features") if e["vm"] == client.number] == []


def test_owners_are_tolerated_in_any_order(client: Client) -> None:
    for request in (FrontendRequest.RESET_OWNER, FrontendRequest.SET_OWNER, FrontendRequest.SET_OWNER) * 2:
        assert client.ask(request) == 0
    assert client.ask(FrontendRequest.SET_FEATURES, OFFERED) == 0


def test_reset_owner_keeps_a_session_going(scene: Scene) -> None:
    machine = scene.machine()
    assert machine.ask(FrontendRequest.RESET_OWNER) == 0
    machine.check_alive()


def test_features_set_again_without_bit_30_enable_every_ring(scene: Scene) -> None:
    """User Mode Linux loses the bit on the way, and then never enables a ring."""
    machine = scene.machine(run=False)
    machine.set_memory()
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features) == 0
    messages = machine.reporting.messages()
    del messages[FrontendRequest.SET_VRING_ENABLE]
    machine.ask_each(messages)
    machine.check_alive()


def test_features_set_again_leave_running_rings_running(scene: Scene) -> None:
    machine = scene.machine()
    machine.check_alive()
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features | PROTOCOL_FEATURES) == 0
    machine.check_alive()


WITHOUT_ROLE = [("queue_unknown", str(REPORTING)), ("refused", "unknown_queue")]


def test_ring_whose_queue_was_negotiated_away_is_answered(scene: Scene) -> None:
    machine = scene.machine()
    machine.check_alive()
    without = machine.features & ~feature_mask(BalloonFeature.PAGE_REPORTING)
    assert machine.ask(FrontendRequest.SET_FEATURES, without | PROTOCOL_FEATURES) == 0
    machine.ram.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.ram.pages()
    machine.submit([(DATA_AT, PAGE_SIZE)])
    machine.send_pfns(INFLATE, b"")
    assert machine.ram.pages() == before
    machine.reporting.collect()
    scene.expect(machine, *WITHOUT_ROLE)


def test_ring_beyond_the_negotiated_queues_may_be_set_up(scene: Scene) -> None:
    machine = scene.machine(wanted=WANTED & ~feature_mask(BalloonFeature.PAGE_REPORTING))
    machine.ram.touch(DATA_AT, PAGE_SIZE)
    before = machine.ram.pages()
    machine.submit([(DATA_AT, PAGE_SIZE)])
    machine.reporting.collect()
    assert machine.ask(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0)) == VringState(REPORTING, 1)
    assert machine.ram.pages() == before
    scene.expect(machine, *WITHOUT_ROLE)


@pytest.mark.parametrize(("offset", "size"), [(0, 16), (0, 4), (4, 4), (12, 4), (3, 2), (0, 256), (250, 6), (16, 8)])
def test_configuration_space_of_any_window(client: Client, offset: int, size: int) -> None:
    request = DeviceConfig(offset=offset, flags=1, data=bytes(size))
    assert client.ask(FrontendRequest.GET_CONFIG, request) == DeviceConfig(offset=offset, flags=1, data=bytes(size))


def test_configuration_space_beyond_its_end(scene: Scene, client: Client) -> None:
    config = DeviceConfig(offset=250, flags=0, data=bytes(7))
    assert client.ask(FrontendRequest.GET_CONFIG, config) is None  # an empty payload means failure
    assert client.ask(FrontendRequest.SET_CONFIG, config) == 1
    scene.expect(client, ("message_refused", "GET_CONFIG"), ("message_refused", "SET_CONFIG"))


@pytest.mark.parametrize("flags", [0, 1])
def test_driver_writes_actual_and_nothing_else(client: Client, flags: int) -> None:
    window = struct.pack("<IIII", 11, 22, 33, 44)
    assert client.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=0, flags=flags, data=window)) == 0
    config = client.ask(FrontendRequest.GET_CONFIG, DeviceConfig(offset=0, flags=0, data=bytes(16)))
    assert isinstance(config, DeviceConfig)
    assert struct.unpack("<IIII", config.data) == (0, 22, 0, 0)
