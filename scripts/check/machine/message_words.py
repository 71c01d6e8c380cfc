"""A front-end's message in a few words, for a reason: its name, the queue, and the number that matters."""

import struct
from typing import Final

from protocol.errors import VhostUserError
from protocol.vhost_user import HEADER_SIZE, FrontendRequest, form_of
from protocol.vhost_user_codec import parse_payload
from protocol.vhost_user_payloads import MemoryTable, Payload, VringAddress, VringFile, VringState

_WITHOUT_NUMBER: Final = (FrontendRequest.GET_VRING_BASE, FrontendRequest.GET_VRING_BASE_SKIP_DRAIN)


def in_words(request: int, payload: Payload = None) -> str:
    """Return such as ``SET_VRING_KICK of queue 0 with a descriptor``."""
    try:
        name = FrontendRequest(request).name
    except ValueError:
        return f"request {request}"
    match payload:
        case VringFile(index=index, has_file=has_file):
            return f"{name} of queue {index} {'with a' if has_file else 'without a'} descriptor"
        case VringState(index=index) if request in _WITHOUT_NUMBER:
            return f"{name} of queue {index}"
        case VringState(index=index, num=num):
            return f"{name} of queue {index} with {num}"
        case VringAddress(index=index):
            return f"{name} of queue {index}"
        case MemoryTable(regions=regions):
            return f"{name} of {len(regions)} region{'s' * (len(regions) != 1)}"
        case int(word):
            return f"{name} with {word:#x}"
        case _:
            return name


def sent_in_words(data: bytes) -> str:
    """Return what the first message of ``data`` says; ``a piece of a message`` for less than its header."""
    if len(data) < HEADER_SIZE:
        return "a piece of a message"
    request, _, size = struct.unpack("<III", data[:HEADER_SIZE])
    try:
        form = form_of(FrontendRequest(request)).payload
        body = data[HEADER_SIZE : HEADER_SIZE + size]
        return in_words(request, None if form is None or len(body) != size else parse_payload(form, body))
    except (ValueError, VhostUserError):
        return in_words(request)
