"""Every vhost-user number, payload size and file descriptor count, against the specification's own tables."""

import pytest

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.message_limits import FDS_MAX, PAYLOAD_MAX
from protocol.vhost_user import (
    BACKEND_REQUEST_FORMS,
    CONFIG_MAX,
    FRONTEND_REQUEST_FORMS,
    HEADER,
    HEADER_SIZE,
    REGIONS_PER_TABLE,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    FrontendRequest,
    HeaderFlag,
    ProtocolFeature,
    form_of,
)
from protocol.vhost_user_codec import build_payload, parse_payload
from protocol.vhost_user_payloads import (
    DeviceConfig,
    DeviceStateTransfer,
    InflightDescription,
    LogDescription,
    MemoryTable,
    Payload,
    VringAddress,
    VringAddressFlag,
    VringFile,
    VringState,
)

# "Front-end message types": id, name, bytes of the payload (None: it varies), bytes of its own reply (None: an
# acknowledgement at most), how many file descriptors may come (table and ring files are checked further by payload).
FRONTEND: dict[int, tuple[str, int | None, int | None, set[int]]] = {
    1: ("GET_FEATURES", 0, 8, {0}),
    2: ("SET_FEATURES", 8, None, {0}),
    3: ("SET_OWNER", 0, None, {0}),
    4: ("RESET_OWNER", 0, None, {0}),
    5: ("SET_MEM_TABLE", None, None, set(range(9))),
    6: ("SET_LOG_BASE", 16, 8, {1}),
    7: ("SET_LOG_FD", 0, None, {1}),
    8: ("SET_VRING_NUM", 8, None, {0}),
    9: ("SET_VRING_ADDR", 40, None, {0}),
    10: ("SET_VRING_BASE", 8, None, {0}),
    11: ("GET_VRING_BASE", 8, 8, {0}),
    12: ("SET_VRING_KICK", 8, None, {0, 1}),
    13: ("SET_VRING_CALL", 8, None, {0, 1}),
    14: ("SET_VRING_ERR", 8, None, {0, 1}),
    15: ("GET_PROTOCOL_FEATURES", 0, 8, {0}),
    16: ("SET_PROTOCOL_FEATURES", 8, None, {0}),
    17: ("GET_QUEUE_NUM", 0, 8, {0}),
    18: ("SET_VRING_ENABLE", 8, None, {0}),
    21: ("SET_BACKEND_REQ_FD", 0, None, {1}),
    24: ("GET_CONFIG", None, None, {0}),
    25: ("SET_CONFIG", None, None, {0}),
    31: ("GET_INFLIGHT_FD", 24, 24, {0}),
    32: ("SET_INFLIGHT_FD", 24, None, {1}),
    34: ("RESET_DEVICE", 0, None, {0}),
    35: ("VRING_KICK", 8, None, {0}),
    36: ("GET_MAX_MEM_SLOTS", 0, 8, {0}),
    37: ("ADD_MEM_REG", 40, None, {1}),
    38: ("REM_MEM_REG", 40, None, {0, 1}),
    39: ("SET_STATUS", 8, None, {0}),
    40: ("GET_STATUS", 0, 8, {0}),
    42: ("SET_DEVICE_STATE_FD", 8, 8, {1}),
    43: ("CHECK_DEVICE_STATE", 0, 8, {0}),
    45: ("GET_VRING_BASE_SKIP_DRAIN", 8, 8, {0}),
}

BACKEND = {2: ("CONFIG_CHANGE_MSG", 0), 4: ("VRING_CALL", 8), 5: ("VRING_ERR", 8)}

PROTOCOL_FEATURES = {
    "MQ": 0,
    "LOG_SHMFD": 1,
    "REPLY_ACK": 3,
    "BACKEND_REQ": 5,
    "CONFIG": 9,
    "INFLIGHT_SHMFD": 12,
    "RESET_DEVICE": 13,
    "INBAND_NOTIFICATIONS": 14,
    "CONFIGURE_MEM_SLOTS": 15,
    "STATUS": 16,
    "DEVICE_STATE": 19,
    "GET_VRING_BASE_INFLIGHT": 20,
    "GET_VRING_BASE_SKIP_DRAIN": 23,
}


def test_front_end_requests_have_the_numbers_of_the_text() -> None:
    assert {int(request): request.name for request in FrontendRequest} == {
        number: name for number, (name, _, _, _) in FRONTEND.items()
    }


def test_back_end_requests_have_the_numbers_of_the_text() -> None:
    assert {int(request): request.name for request in BackendRequest} == {
        number: name for number, (name, _) in BACKEND.items()
    }


def test_protocol_features_have_the_bits_of_the_text() -> None:
    assert {feature.name: int(feature) for feature in ProtocolFeature} == PROTOCOL_FEATURES


@pytest.mark.parametrize(
    ("name", "ours", "text"),
    [
        ("bytes of a header", HEADER_SIZE, 12),
        ("version", VERSION, 1),
        ("bits of the version", VERSION_MASK, 3),
        ("reply flag", HeaderFlag.REPLY, 1 << 2),
        ("need_reply flag", HeaderFlag.NEED_REPLY, 1 << 3),
        ("regions of one table", REGIONS_PER_TABLE, 8),
        ("bytes of configuration space", CONFIG_MAX, 256),
        ("file descriptors of one message", FDS_MAX, 253),
        ("longest payload", PAYLOAD_MAX, 4096),
        ("log flag of SET_VRING_ADDR", VringAddressFlag.LOG, 1),
    ],
)
def test_number_is_the_one_of_the_text(name: str, ours: int, text: int) -> None:
    assert ours == text, name


def test_header_is_request_flags_size() -> None:
    data = bytes(HEADER.build({"request": 0x01020304, "flags": 0x05060708, "size": 0x090A0B0C}))
    assert data == bytes.fromhex("04030201 08070605 0c0b0a09")


@pytest.mark.parametrize("number", FRONTEND)
def test_front_end_request_has_payload_reply_and_descriptors_of_the_text(number: int) -> None:
    name, payload_bytes, reply_bytes, fds = FRONTEND[number]
    form = FRONTEND_REQUEST_FORMS[FrontendRequest(number)]
    assert set(form.fds) == fds, name
    if payload_bytes == 0:
        assert form.payload is None
    elif payload_bytes is not None:
        assert form.payload is not None
        assert form.payload.layout.sizeof() == payload_bytes
    if reply_bytes is not None:
        assert form.reply is not None
        assert form.reply.layout.sizeof() == reply_bytes
    elif name != "GET_CONFIG":
        assert form.reply is None


def test_get_config_is_answered_in_its_own_form() -> None:
    form = FRONTEND_REQUEST_FORMS[FrontendRequest.GET_CONFIG]
    assert form.reply is form.payload is FRONTEND_REQUEST_FORMS[FrontendRequest.SET_CONFIG].payload


@pytest.mark.parametrize("number", BACKEND)
def test_back_end_request_has_the_payload_of_the_text(number: int) -> None:
    name, payload_bytes = BACKEND[number]
    form = BACKEND_REQUEST_FORMS[BackendRequest(number)]
    assert (form.payload.layout.sizeof() if form.payload else 0) == payload_bytes, name
    assert set(form.fds) == {0}
    assert form.reply is None


REGION = MemoryRegion(
    guest_address=GuestAddress(0x0101010101010101),
    size=0x0202020202020202,
    user_address=UserAddress(0x0303030303030303),
    mmap_offset=0x0404040404040404,
)
REGION_BYTES = b"\1" * 8 + b"\2" * 8 + b"\3" * 8 + b"\4" * 8

# Whole payloads written out by hand, field after field in the order of the text.
WRITTEN_OUT: list[tuple[FrontendRequest, Payload, str]] = [
    (FrontendRequest.SET_FEATURES, 0x0102030405060708, "0807060504030201"),
    (FrontendRequest.SET_VRING_NUM, VringState(2, 256), "02000000 00010000"),
    (FrontendRequest.GET_VRING_BASE, VringState(2, 0), "02000000 00000000"),
    (FrontendRequest.SET_VRING_ENABLE, VringState(4, 1), "04000000 01000000"),
    (FrontendRequest.SET_VRING_KICK, VringFile(2, True), "0200000000000000"),
    (FrontendRequest.SET_VRING_CALL, VringFile(255, False), "ff01000000000000"),
    (
        FrontendRequest.SET_VRING_ADDR,
        VringAddress(
            index=3,
            flags=1,
            descriptor=UserAddress(0x1111),
            used=UserAddress(0x2222),
            available=UserAddress(0x3333),
            log=0x4444,
        ),
        "03000000 01000000 1111000000000000 2222000000000000 3333000000000000 4444000000000000",
    ),
    (FrontendRequest.SET_MEM_TABLE, MemoryTable((REGION,)), "01000000 00000000" + REGION_BYTES.hex()),
    (FrontendRequest.SET_MEM_TABLE, MemoryTable(()), "00000000 00000000"),
    (FrontendRequest.ADD_MEM_REG, REGION, "0000000000000000" + REGION_BYTES.hex()),
    (FrontendRequest.REM_MEM_REG, REGION, "0000000000000000" + REGION_BYTES.hex()),
    (
        FrontendRequest.SET_CONFIG,
        DeviceConfig(offset=4, flags=1, data=b"\xaa\xbb\xcc\xdd"),
        "04000000 04000000 01000000 aabbccdd",
    ),
    (FrontendRequest.SET_LOG_BASE, LogDescription(0x1000, 0x2000), "0010000000000000 0020000000000000"),
    (
        FrontendRequest.SET_INFLIGHT_FD,
        InflightDescription(mmap_size=0x1000, mmap_offset=0x40, num_queues=3, queue_size=256),
        "0010000000000000 4000000000000000 0300 0001 00000000",
    ),
    (FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(1, 0), "01000000 00000000"),
]


@pytest.mark.parametrize(("request_", "payload", "written"), WRITTEN_OUT, ids=lambda value: getattr(value, "name", ""))
def test_payload_is_byte_for_byte_what_the_text_describes(
    request_: FrontendRequest, payload: Payload, written: str
) -> None:
    form = form_of(request_).payload
    assert form is not None
    assert build_payload(form, payload) == bytes.fromhex(written)
    assert parse_payload(form, bytes.fromhex(written)) == payload


def test_number_2_means_something_else_in_each_direction() -> None:
    assert form_of(FrontendRequest.SET_FEATURES).payload is not None
    assert form_of(BackendRequest.CONFIG_CHANGE_MSG).payload is None
