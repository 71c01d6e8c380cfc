"""The vhost-user messages that a balloon back-end receives and sends: header, requests, features, and request forms.

Source: the vhost-user specification (QEMU ``docs/interop/vhost-user.rst``), sections "Message Specification" and
"Front-end message types". Numbers are in the machine's byte order, which for this project is little-endian.

Only the syntax is here: the payload of each request and the number of file descriptors that come with it. The session
of each side carries a message out (``host/vhost_user/session.py``, ``guest/vhost_user/frontend.py``).
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, TypeAlias

from construct import Int32ul, Struct

from protocol.vhost_user_payloads import (
    CONFIG,
    DEVICE_STATE,
    DEVICE_STATE_NO_FD,
    INFLIGHT,
    LOG,
    MEMORY_TABLE,
    SINGLE_REGION,
    U64,
    VRING_ADDRESS,
    VRING_FILE,
    VRING_STATE,
    PayloadForm,
)

HEADER_SIZE: Final = 12

REGIONS_PER_TABLE: Final = 8
"""Most regions of one SET_MEM_TABLE ("Memory regions description")."""

CONFIG_MAX: Final = 256
"""Most bytes of configuration space that one message carries ("Virtio device config space")."""

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3

HEADER: Final = Struct("request" / Int32ul, "flags" / Int32ul, "size" / Int32ul)

assert HEADER.sizeof() == HEADER_SIZE


class HeaderFlag(IntFlag):
    """Flags of the message header besides the version in bits 0 and 1."""

    REPLY = 0x4
    NEED_REPLY = 0x8


class FrontendRequest(IntEnum):
    """Requests of the front-end ("Front-end message types") that a balloon back-end needs or may be asked."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_VRING_BASE_SKIP_DRAIN = 45


class BackendRequest(IntEnum):
    """Requests of the back-end, on the channel of SET_BACKEND_REQ_FD ("Back-end message types")."""

    CONFIG_CHANGE_MSG = 2
    VRING_CALL = 4
    VRING_ERR = 5


Request: TypeAlias = FrontendRequest | BackendRequest


class ProtocolFeature(IntEnum):
    """Bit numbers of the protocol features ("Protocol features")."""

    MQ = 0
    LOG_SHMFD = 1
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GET_VRING_BASE_SKIP_DRAIN = 23


@dataclass(frozen=True, slots=True)
class RequestForm:
    """The form of one request: its payload, the reply of its own, and the number of its file descriptors.

    ``payload`` and ``reply`` are None for a request without them. ``fds`` lists the counts allowed by the form alone;
    SET_MEM_TABLE and the vring file messages are checked against their payload as well. ``refusal`` is the payload, in
    bytes, of the reply that says that the request failed. Without one a request that has a reply of its own cannot be
    refused: its sender takes any answer for the reply. ``needs`` is the protocol feature without which the request may
    not be made; with ``reply_is_optional`` it has no reply of its own then either.
    """

    payload: PayloadForm | None = None
    reply: PayloadForm | None = None
    fds: range = range(1)
    refusal: bytes | None = None
    needs: ProtocolFeature | None = None
    reply_is_optional: bool = False


_ONE_FD: Final = range(1, 2)
_ONE_FD_OR_NONE: Final = range(2)
_FAILURE: Final = (1).to_bytes(8, "little")

FRONTEND_REQUEST_FORMS: Final[dict[FrontendRequest, RequestForm]] = {
    FrontendRequest.GET_FEATURES: RequestForm(reply=U64),
    FrontendRequest.SET_FEATURES: RequestForm(U64),
    FrontendRequest.SET_OWNER: RequestForm(),
    FrontendRequest.RESET_OWNER: RequestForm(),
    FrontendRequest.SET_MEM_TABLE: RequestForm(MEMORY_TABLE, fds=range(REGIONS_PER_TABLE + 1)),
    FrontendRequest.SET_LOG_BASE: RequestForm(
        LOG, reply=U64, fds=_ONE_FD, refusal=_FAILURE, reply_is_optional=True, needs=ProtocolFeature.LOG_SHMFD
    ),
    FrontendRequest.SET_LOG_FD: RequestForm(fds=_ONE_FD, needs=ProtocolFeature.LOG_SHMFD),
    FrontendRequest.SET_VRING_NUM: RequestForm(VRING_STATE),
    FrontendRequest.SET_VRING_ADDR: RequestForm(VRING_ADDRESS),
    FrontendRequest.SET_VRING_BASE: RequestForm(VRING_STATE),
    FrontendRequest.GET_VRING_BASE: RequestForm(VRING_STATE, reply=VRING_STATE),
    FrontendRequest.SET_VRING_KICK: RequestForm(VRING_FILE, fds=_ONE_FD_OR_NONE),
    FrontendRequest.SET_VRING_CALL: RequestForm(VRING_FILE, fds=_ONE_FD_OR_NONE),
    FrontendRequest.SET_VRING_ERR: RequestForm(VRING_FILE, fds=_ONE_FD_OR_NONE),
    FrontendRequest.GET_PROTOCOL_FEATURES: RequestForm(reply=U64),
    FrontendRequest.SET_PROTOCOL_FEATURES: RequestForm(U64),
    FrontendRequest.GET_QUEUE_NUM: RequestForm(reply=U64),
    FrontendRequest.SET_VRING_ENABLE: RequestForm(VRING_STATE),
    FrontendRequest.SET_BACKEND_REQ_FD: RequestForm(fds=_ONE_FD),
    FrontendRequest.GET_CONFIG: RequestForm(CONFIG, reply=CONFIG, refusal=b""),
    FrontendRequest.SET_CONFIG: RequestForm(CONFIG),
    FrontendRequest.GET_INFLIGHT_FD: RequestForm(
        INFLIGHT, reply=INFLIGHT, refusal=bytes(INFLIGHT.layout.sizeof()), needs=ProtocolFeature.INFLIGHT_SHMFD
    ),
    FrontendRequest.SET_INFLIGHT_FD: RequestForm(INFLIGHT, fds=_ONE_FD, needs=ProtocolFeature.INFLIGHT_SHMFD),
    FrontendRequest.RESET_DEVICE: RequestForm(),
    FrontendRequest.VRING_KICK: RequestForm(VRING_STATE, needs=ProtocolFeature.INBAND_NOTIFICATIONS),
    FrontendRequest.GET_MAX_MEM_SLOTS: RequestForm(reply=U64),
    FrontendRequest.ADD_MEM_REG: RequestForm(SINGLE_REGION, fds=_ONE_FD),
    FrontendRequest.REM_MEM_REG: RequestForm(SINGLE_REGION, fds=_ONE_FD_OR_NONE),
    FrontendRequest.SET_STATUS: RequestForm(U64, needs=ProtocolFeature.STATUS),
    FrontendRequest.GET_STATUS: RequestForm(reply=U64, needs=ProtocolFeature.STATUS),
    FrontendRequest.SET_DEVICE_STATE_FD: RequestForm(
        DEVICE_STATE,
        reply=U64,
        fds=_ONE_FD,
        refusal=(DEVICE_STATE_NO_FD | 1).to_bytes(8, "little"),
        needs=ProtocolFeature.DEVICE_STATE,
    ),
    FrontendRequest.CHECK_DEVICE_STATE: RequestForm(reply=U64, refusal=_FAILURE, needs=ProtocolFeature.DEVICE_STATE),
    FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: RequestForm(
        VRING_STATE, reply=VRING_STATE, needs=ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    ),
}

BACKEND_REQUEST_FORMS: Final[dict[BackendRequest, RequestForm]] = {
    BackendRequest.CONFIG_CHANGE_MSG: RequestForm(),
    BackendRequest.VRING_CALL: RequestForm(VRING_STATE),
    BackendRequest.VRING_ERR: RequestForm(VRING_STATE),
}

assert set(FRONTEND_REQUEST_FORMS) == set(FrontendRequest)
assert set(BACKEND_REQUEST_FORMS) == set(BackendRequest)


def form_of(request: Request) -> RequestForm:
    """Return the form of ``request``. Two tables, because the numbers of the two directions overlap."""
    if isinstance(request, FrontendRequest):
        return FRONTEND_REQUEST_FORMS[request]
    return BACKEND_REQUEST_FORMS[request]
