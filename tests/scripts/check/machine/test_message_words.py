"""A message in a few words, as reasons have it."""

import pytest

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import MemoryTable, Payload, VringAddress, VringFile, VringState
from scripts.check.machine.message_words import in_words, sent_in_words

REGION = MemoryRegion(guest_address=GuestAddress(0), size=4096, user_address=UserAddress(0), mmap_offset=0)
ADDRESS = VringAddress(
    index=2, flags=0, descriptor=UserAddress(0), used=UserAddress(4096), available=UserAddress(8192), log=0
)


@pytest.mark.parametrize(
    ("request_", "payload", "words"),
    [
        (FrontendRequest.SET_OWNER, None, "SET_OWNER"),
        (FrontendRequest.SET_FEATURES, 1 << 32, "SET_FEATURES with 0x100000000"),
        (FrontendRequest.SET_VRING_NUM, VringState(1, 64), "SET_VRING_NUM of queue 1 with 64"),
        (FrontendRequest.GET_VRING_BASE, VringState(1, 0), "GET_VRING_BASE of queue 1"),
        (FrontendRequest.SET_VRING_ADDR, ADDRESS, "SET_VRING_ADDR of queue 2"),
        (FrontendRequest.SET_VRING_KICK, VringFile(0, True), "SET_VRING_KICK of queue 0 with a descriptor"),
        (FrontendRequest.SET_VRING_CALL, VringFile(3, False), "SET_VRING_CALL of queue 3 without a descriptor"),
        (FrontendRequest.SET_MEM_TABLE, MemoryTable((REGION,)), "SET_MEM_TABLE of 1 region"),
    ],
)
def test_message_is_named_with_what_matters(request_: FrontendRequest, payload: Payload, words: str) -> None:
    assert in_words(request_, payload) == words
    assert sent_in_words(build_message(request_, payload)) == words


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(5), "a piece of a message"),
        ((1000).to_bytes(4, "little") + bytes(8), "request 1000"),
        (build_message(FrontendRequest.SET_VRING_NUM, VringState(1, 64))[:-4], "SET_VRING_NUM"),
    ],
)
def test_what_is_no_message_is_named_as_far_as_it_goes(data: bytes, words: str) -> None:
    assert sent_in_words(data) == words
