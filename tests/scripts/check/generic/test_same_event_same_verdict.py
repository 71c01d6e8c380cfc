"""What a back-end does with one event gets the same verdict from each case in which it happens."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.vhost_user import HEADER_SIZE, FrontendRequest, HeaderFlag, ProtocolFeature
from protocol.virtio import FeatureBit, feature_mask
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.generic.target import Facts, Target
from scripts.check.machine.connection import FrontendConnection
from scripts.check.verdict import Found

FEATURES = feature_mask(FeatureBit.VERSION_1, FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES)


class OneKick:
    """A back-end that acknowledges everything, and hangs up on the second kick descriptor."""

    def __init__(self) -> None:
        self.facts = Facts(features=FEATURES, protocol_features=feature_mask(ProtocolFeature.REPLY_ACK))
        self.ends_with_front_end = False

    def serve(self, ours: socket.socket) -> None:
        kicks = 0
        with ours:
            while header := ours.recv(HEADER_SIZE, socket.MSG_WAITALL):
                request, flags, size = struct.unpack("<III", header)
                if size:
                    ours.recv(size, socket.MSG_WAITALL)
                kicks += request == FrontendRequest.SET_VRING_KICK
                if kicks > 1:
                    return
                if request == FrontendRequest.GET_FEATURES:
                    ours.sendall(struct.pack("<IIIQ", request, 5, 8, FEATURES))
                elif flags & HeaderFlag.NEED_REPLY:
                    ours.sendall(struct.pack("<IIIQ", request, 5, 8, 0))

    def reconnected(self) -> FrontendConnection:
        """There is one connection only."""
        raise AssertionError

    connected = reconnected

    def second(self) -> None:
        """There is one connection only."""

    def check_survival(self, target: Target) -> None:
        """Nothing crashes here."""


@contextmanager
def target_with_one_kick() -> Iterator[Target]:
    ours, theirs = socket.socketpair()
    backend = OneKick()
    thread = threading.Thread(target=backend.serve, args=(theirs,))
    thread.start()
    target = Target(backend, FrontendConnection(ours))
    try:
        yield target
    finally:
        target.close()
        thread.join()


@pytest.mark.parametrize("name", ["replaced-descriptors", "kick-replaced-on-a-running-ring"])
def test_hang_up_on_a_replaced_kick_is_a_finding(name: str) -> None:
    words = "cannot be replaced: the back-end ended the connection on SET_VRING_KICK of queue 0 with a descriptor"
    with target_with_one_kick() as target, pytest.raises(Found, match=words):
        GENERIC_CASES[name].run(target)
