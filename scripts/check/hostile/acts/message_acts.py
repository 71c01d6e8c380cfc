"""Acts with messages alone: any request with any payload and any descriptors, mutated streams, halves, floods."""

import itertools
import struct
from typing import Final

from protocol.message_limits import PAYLOAD_MAX
from protocol.vhost_user import FrontendRequest, ProtocolFeature, form_of
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import (
    CONFIG,
    DEVICE_STATE,
    INFLIGHT,
    LOG,
    MEMORY_TABLE,
    SINGLE_REGION,
    U64,
    VRING_ADDRESS,
    VRING_FILE,
    VRING_STATE,
    DeviceConfig,
)
from scripts.check.fuzzing.corpus import CORPUS, read_inputs
from scripts.check.fuzzing.mutation import Mutator
from scripts.check.hostile.acts.act import act
from scripts.check.hostile.acts.attack import Attack, Gone
from scripts.check.hostile.acts.descriptors import descriptor, memory_file
from scripts.check.machine.vhost_user_device import GUEST_BASE, USER_BASE

_REQUESTS: Final = tuple(FrontendRequest)
_WITH_FDS: Final = tuple(request for request in _REQUESTS if form_of(request).fds != range(1))
_CODEC: Final = [data[4:] for data in read_inputs(CORPUS / "codec")]
"""Whole messages: what the codec's inputs have after their choices."""

_FLOOD: Final = 400


def _address(attack: Attack, base: int) -> int:
    if attack.random.random() < 0.6:
        return base + attack.random.randrange(0, 40 << 20) // 2 * 2
    return attack.number(64)


def _region(attack: Attack) -> bytes:
    size = attack.random.choice((4096, 1 << 20, 64 << 20, attack.number(64)))
    offset = attack.random.choice((0, 4096, attack.number(64)))
    return struct.pack("<4Q", _address(attack, GUEST_BASE), size, _address(attack, USER_BASE), offset)


def payload(attack: Attack, request: FrontendRequest) -> bytes:
    """Return a payload of the request's form with any content, sometimes of any length."""
    form, random = form_of(request).payload, attack.random
    if random.random() < 0.1:
        return random.randbytes(random.choice((0, 1, 7, 8, 9, 64, 300)))
    index = random.choice((0, 1, 2, 3, 4, 5, 255, attack.number(32)))
    if form is U64:
        return struct.pack("<Q", attack.number(64))
    if form is VRING_STATE:
        return struct.pack("<2I", index, attack.number(32))
    if form is VRING_FILE:
        return struct.pack("<Q", index | random.choice((0, 0, 0x100)))
    if form is VRING_ADDRESS:
        places = [_address(attack, USER_BASE) for _ in range(4)]
        return struct.pack("<2I4Q", index, random.choice((0, 0, 1, 2)), *places)
    if form is MEMORY_TABLE:
        count = random.randrange(10)
        return struct.pack("<2I", count, 0) + b"".join(_region(attack) for _ in range(count))
    if form is SINGLE_REGION:
        return bytes(8) + _region(attack)
    if form is CONFIG:
        size = random.choice((0, 1, 4, 8, 16, 255, 256, 257))
        return struct.pack("<3I", attack.number(32), size, random.choice((0, 1))) + random.randbytes(size)
    if form is LOG:
        return struct.pack("<2Q", attack.number(64), attack.number(64))
    if form is INFLIGHT:
        return struct.pack("<2Q2HI", attack.number(64), attack.number(64), attack.number(16), attack.number(16), 0)
    if form is DEVICE_STATE:
        return struct.pack("<2I", random.randrange(3), random.randrange(2))
    return b""


def _message(attack: Attack, request: int, data: bytes) -> bytes:
    flags = 1 | (8 if attack.random.random() < 0.5 else 0)
    size = len(data)
    if attack.random.random() < 0.03:
        flags = attack.number(32)
    if attack.random.random() < 0.02:
        size = attack.number(32)
    return struct.pack("<3I", request, flags, size) + data


@act("any-messages")
def _(attack: Attack) -> None:
    """Send requests of any kind with any payload, and descriptors whether they need them or not."""
    random = attack.random
    for _ in range(random.randrange(1, 25)):
        request = random.choice(_REQUESTS)
        number = request if random.random() < 0.95 else attack.number(32)
        fits = form_of(request).fds
        wanted = fits[-1] if len(fits) and random.random() < 0.7 else random.choice((0, 0, 1, 2, 9))
        fds = [descriptor(attack) for _ in range(min(wanted, 9))]
        data = _message(attack, number, payload(attack, request))
        at = random.randrange(1, len(data)) if random.random() < 0.2 else len(data)
        attack.send(data[:at], fds)
        if at < len(data):
            attack.send(data[at:])
        if random.random() < 0.3:
            attack.drain()


@act("wrong-descriptors")
def _(attack: Attack) -> None:
    """Send what needs a descriptor with one of another kind."""
    for _ in range(attack.random.randrange(1, 12)):
        request = attack.random.choice(_WITH_FDS)
        attack.send(_message(attack, request, payload(attack, request)), [descriptor(attack)])


@act("many-descriptors")
def _(attack: Attack) -> None:
    """Send as many descriptors as one message carries, with one that needs none."""
    fds = [memory_file(attack) if attack.random.random() < 0.1 else descriptor(attack) for _ in range(8)]
    count = attack.random.choice((9, 64, 253))
    request = attack.random.choice(_REQUESTS)
    attack.send(
        _message(attack, request, payload(attack, request)), list(itertools.islice(itertools.cycle(fds), count))
    )


@act("mutated-stream")
def _(attack: Attack) -> None:
    """Send whole messages in which a few bytes are others, in pieces of any length."""
    mutator = Mutator(attack.random.getrandbits(64), _CODEC)
    stream = b"".join(itertools.islice(mutator, len(_CODEC), len(_CODEC) + attack.random.randrange(1, 5)))
    at = 0
    while at < len(stream):
        length = attack.random.choice((1, 5, 12, 20, 300, PAYLOAD_MAX))
        fds = [descriptor(attack)] if attack.random.random() < 0.1 else []
        attack.send(stream[at : at + length], fds)
        at += length


@act("half-message")
def _(attack: Attack) -> None:
    """Begin a message, with descriptors, and leave it at that."""
    request = attack.random.choice(_REQUESTS)
    data = _message(attack, request, payload(attack, request))
    fds = [descriptor(attack) for _ in range(attack.random.randrange(3))]
    attack.send(data[: attack.random.randrange(1, len(data))], fds)
    raise Gone


@act("replies-unread")
def _(attack: Attack) -> None:
    """Ask until neither side can write any more."""
    request = attack.random.choice((FrontendRequest.GET_FEATURES, FrontendRequest.GET_CONFIG))
    config = DeviceConfig(offset=0, flags=0, data=bytes(16)) if request is FrontendRequest.GET_CONFIG else None
    for _ in range(_FLOOD):
        attack.send(build_message(request, config) * 16)


@act("resets")
def _(attack: Attack) -> None:
    """Reset the device in all the ways that there are, several times."""
    for _ in range(attack.random.randrange(1, 12)):
        match attack.random.randrange(5):
            case 0:
                attack.request(FrontendRequest.RESET_DEVICE)
            case 1:
                attack.request(FrontendRequest.RESET_OWNER)
            case 2:
                attack.request(FrontendRequest.SET_STATUS, attack.random.choice((0, 0, attack.number(8))))
            case 3:
                attack.request(FrontendRequest.SET_OWNER)
            case _:
                attack.request(FrontendRequest.SET_FEATURES, attack.number(64))


@act("any-features")
def _(attack: Attack) -> None:
    """Negotiate protocol features again and again, each time others."""
    for _ in range(attack.random.randrange(1, 12)):
        attack.request(FrontendRequest.SET_PROTOCOL_FEATURES, 1 << attack.random.choice(tuple(ProtocolFeature)))
        attack.request(FrontendRequest.SET_FEATURES, attack.random.getrandbits(40))
