"""Hypothesis strategies for every vhost-user message, and messages as bytes, put together without the codec."""

import struct

from hypothesis import strategies as st

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import BACKEND_REQUEST_FORMS, FRONTEND_REQUEST_FORMS, FrontendRequest, Request, form_of
from protocol.vhost_user_payloads import (
    DeviceConfig,
    DeviceStateTransfer,
    InflightDescription,
    LogDescription,
    MemoryTable,
    Payload,
    VringAddress,
    VringFile,
    VringState,
)

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
GUEST = U64.map(GuestAddress)
USER = U64.map(UserAddress)
REGIONS = st.builds(MemoryRegion, guest_address=GUEST, size=U64, user_address=USER, mmap_offset=U64)

PAYLOADS: dict[str, st.SearchStrategy[Payload]] = {
    "u64": U64,
    "vring state": st.builds(VringState, U32, U32),
    "vring file": st.builds(VringFile, st.integers(0, 255), st.booleans()),
    "vring address": st.builds(VringAddress, index=U32, flags=U32, descriptor=USER, used=USER, available=USER, log=U64),
    "memory table": st.lists(REGIONS, max_size=9).map(lambda regions: MemoryTable(tuple(regions))),
    "memory region": REGIONS,
    "config space": st.builds(DeviceConfig, offset=U32, flags=U32, data=st.binary(max_size=256)),
    "log": st.builds(LogDescription, U64, U64),
    "inflight": st.builds(InflightDescription, mmap_size=U64, mmap_offset=U64, num_queues=U16, queue_size=U16),
    "device state": st.builds(DeviceStateTransfer, U32, U32),
}

ALL_REQUESTS: list[Request] = [*FRONTEND_REQUEST_FORMS, *BACKEND_REQUEST_FORMS]


def payload_of(request: Request) -> st.SearchStrategy[Payload]:
    """Return a strategy for the payload of ``request``."""
    form = form_of(request).payload
    return st.none() if form is None else PAYLOADS[form.name]


def reply_of(request: Request) -> st.SearchStrategy[Payload]:
    """Return a strategy for the payload of the reply to ``request``: its own, or an acknowledgement."""
    form = form_of(request).reply
    return U64 if form is None else PAYLOADS[form.name]


def fd_count(request: Request, payload: Payload) -> int:
    """Return how many file descriptors a good ``request`` with this payload brings (the most, where there is choice).

    Written from the table of messages in the specification.
    """
    match payload:
        case MemoryTable(regions=regions):
            return len(regions)
        case VringFile(has_file=has_file):
            return int(has_file)
        case _:
            pass
    with_one = {
        FrontendRequest.SET_LOG_BASE,
        FrontendRequest.SET_LOG_FD,
        FrontendRequest.SET_BACKEND_REQ_FD,
        FrontendRequest.SET_INFLIGHT_FD,
        FrontendRequest.ADD_MEM_REG,
        FrontendRequest.REM_MEM_REG,
        FrontendRequest.SET_DEVICE_STATE_FD,
    }
    return int(isinstance(request, FrontendRequest) and request in with_one)


def raw(request: int, payload: bytes = b"", *, flags: int = 0x1, size: int | None = None) -> bytes:
    """Return a message as bytes, its header written by hand; ``size`` may lie."""
    return struct.pack("<III", request, flags, len(payload) if size is None else size) + payload
