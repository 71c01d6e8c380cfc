"""Rings that run and stop (vhost-user, "Ring states", GET_VRING_BASE, RESET_DEVICE)."""

import socket
from typing import Final

from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import VringAddressFlag, VringFile
from protocol.virtio import LOG_ALL, FeatureBit
from scripts.check.generic.judging import Bad, refuses
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import Kind, Target
from scripts.check.machine.deadline import stays_true
from scripts.check.verdict import Failed, Found, require, skip

_KICK, _CALL, _ERR = FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR

_QUIET: Final = 0.1
"""Seconds for which nothing may happen on a stopped ring. Back-ends answer a kick within a few milliseconds."""


@SUITE.case("base-comes-back", clauses=("V-32", "V-36"), edges=(84,), peers=("rust-vmm", "QEMU"))
def base_comes_back(target: Target) -> None:
    """GET_VRING_BASE tells the index that a ring was given and that nothing moved."""
    for base in (0, 1, 63, 64, 65535):
        target.negotiated()
        ring = target.ring()
        ring.start_at(base)
        target.start(ring, base)
        seen = target.stop(ring)
        require(seen == base, f"an idle ring that was started at index {base} was stopped at {seen}")
        target.reconnect()


@SUITE.case("base-of-a-stopped-ring", clauses=("V-36", "V-9"), edges=(84,))
def base_of_a_stopped_ring(target: Target) -> None:
    """GET_VRING_BASE of a ring that was set up and not started, or was stopped before, is answered with its base."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(12)
    target.set_up(ring, 12)
    for _ in range(2):
        base = target.stop(ring)
        require(base == 12, f"a stopped ring at index 12 is at {base}")


@SUITE.case(
    "stopped-and-started-again",
    clauses=("V-36",),
    edges=(86,),
    peers=("QEMU", "public/rust-vmm-vhost-180", "tp-qemu/balloon_stop_continue"),
)
def stopped_and_started_again(target: Target) -> None:
    """A ring that was stopped is started again, many times, on one connection."""
    target.negotiated()
    ring = target.ring()
    for base in range(20):
        ring.start_at(base)
        target.start(ring, base)
        seen = target.stop(ring)
        require(seen == base, f"a ring that was started again at {base} was stopped at {seen}")


@SUITE.case("kick-alone-after-a-stop", clauses=("V-36", "V-31"), peers=("public/dpdk-vhost-vfe-138",))
def kick_alone_after_a_stop(target: Target) -> None:
    """A stopped ring goes on where it was when it is given nothing but a kick descriptor."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(6)
    target.start(ring, 6)
    base = target.stop(ring)
    try:
        target.do(_KICK, VringFile(0, True), (ring.kick,))
        target.enable(ring)
        ring.kick_it()
        again = target.stop(ring)
    except Failed as error:
        raise Found(f"a stopped ring does not start by SET_VRING_KICK alone: {error.reason}") from error
    if again != base:
        raise Found(f"a ring that was stopped at {base} and started by SET_VRING_KICK alone is at {again}")


@SUITE.case("set-up-again-without-a-stop", clauses=("V-31",), edges=(66,), peers=("User Mode Linux",))
def set_up_again_without_a_stop(target: Target) -> None:
    """A running ring that is set up anew without GET_VRING_BASE starts anew, as User Mode Linux leaves it."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(30)
    target.start(ring, 30)
    target.enable(ring, 0)
    target.set_memory()
    ring.start_at(0)
    try:
        target.start(ring, 0)
        base = target.stop(ring)
    except Failed as error:
        raise Found(f"a running ring cannot be set up anew: {error.reason}") from error
    if base != 0:
        raise Found(f"a running ring that was set up anew at index 0 is at {base}")


@SUITE.case("logging-on-a-running-ring", clauses=("V-17",), edges=(67,), peers=("QEMU", "public/dpdk-vhost-vfe-75"))
def logging_on_a_running_ring(target: Target) -> None:
    """SET_VRING_ADDR that only turns logging on or off leaves a running ring where it is."""
    target.need(ProtocolFeature.LOG_SHMFD)
    if not target.facts.offers(FeatureBit.VHOST_F_LOG_ALL):
        skip("the back-end does not offer VHOST_F_LOG_ALL")
    target.negotiated()
    target.set_log()
    ring = target.ring()
    ring.start_at(8)
    target.start(ring, 8)
    for log in (True, False, True, False):
        flags = VringAddressFlag.LOG if log else 0
        target.do(FrontendRequest.SET_FEATURES, target.features | (LOG_ALL if log else 0))
        target.do(FrontendRequest.SET_VRING_ADDR, ring.address(flags=flags))
    base = target.stop(ring)
    require(base == 8, f"after logging was turned on and off a ring at index 8 is at {base}")


@SUITE.case("stopped-ring-is-left-alone", clauses=("V-33",), edges=(84, 125), peers=("public/openvmm-3915",))
def stopped_ring_is_left_alone(target: Target) -> None:
    """After GET_VRING_BASE a buffer that is offered and kicked is not taken, and no call is made."""
    target.negotiated()
    ring = target.ring()
    target.start(ring)
    base = target.stop(ring)
    ring.calls()
    used = ring.used_part()
    ring.offer(base)
    ring.kick_it()
    require(
        stays_true(lambda: ring.used_part() == used, _QUIET),
        f"the used ring of a stopped ring changed from {used[:12].hex()} to {ring.used_part()[:12].hex()}",
    )
    require(ring.calls() == 0, "a call was made for a stopped ring", "V-37")
    target.check_alive()


@SUITE.case("ring-that-was-never-started", clauses=("V-33",), edges=(84,))
def ring_that_was_never_started(target: Target) -> None:
    """A ring without a kick descriptor is stopped: a buffer on it is not taken, enabled or not."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    target.enable(ring)
    ring.calls()
    used = ring.used_part()
    ring.offer()
    ring.kick_it()
    require(
        stays_true(lambda: ring.used_part() == used, _QUIET),
        f"the used ring of a ring that was never started changed to {ring.used_part()[:12].hex()}",
    )
    target.check_alive()


@SUITE.case("suspended-device-is-silent", clauses=("V-37",), edges=(87,))
def suspended_device_is_silent(target: Target) -> None:
    """While all rings are stopped no request comes on the back-end channel, and no call."""
    target.need(ProtocolFeature.BACKEND_REQ)
    target.negotiated()
    ours, theirs = socket.socketpair()
    target.keep(ours)
    target.do(FrontendRequest.SET_BACKEND_REQ_FD, None, (theirs.fileno(),))
    theirs.close()
    ring = target.ring()
    target.start(ring)
    target.stop(ring)
    ours.setblocking(False)
    _drained(ours)
    ring.calls()
    quiet = stays_true(lambda: _drained(ours) == b"" and ring.calls() == 0, _QUIET)
    require(quiet, "a suspended device sent a request or made a call")


def _drained(channel: socket.socket) -> bytes:
    try:
        return channel.recv(4096)
    except BlockingIOError:
        return b""


@SUITE.case("back-end-channel-closed", clauses=("V-51",), edges=(141,))
def back_end_channel_closed(target: Target) -> None:
    """A back-end channel that is replaced or closed by the front-end stops nothing; the old one is closed."""
    target.need(ProtocolFeature.BACKEND_REQ)
    target.negotiated()
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, theirs in pairs:
        target.keep(ours)
        target.do(FrontendRequest.SET_BACKEND_REQ_FD, None, (theirs.fileno(),))
        theirs.close()
    first, second = (ours for ours, _ in pairs)
    first.settimeout(1.0)
    try:
        replaced = first.recv(1) == b""
    except TimeoutError:
        replaced = False
    second.close()
    ring = target.ring()
    target.start(ring)
    target.stop(ring)
    if not replaced:
        raise Found("a back-end channel that was replaced is kept open")


@SUITE.case("kicks-of-an-empty-ring", clauses=("V-36",), edges=(79,))
def kicks_of_an_empty_ring(target: Target) -> None:
    """Kicks without a buffer change nothing."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(17)
    target.start(ring, 17)
    used = ring.used_part()
    for _ in range(200):
        ring.kick_it()
    target.check_alive()
    base = target.stop(ring)
    require(base == 17, f"after kicks without a buffer a ring at index 17 is at {base}")
    require(ring.used_part()[2:4] == used[2:4], "kicks without a buffer changed the used index")


@SUITE.case("kick-that-was-there", clauses=("V-41",), edges=(78,))
def kick_that_was_there(target: Target) -> None:
    """A kick descriptor that is readable when it is set starts the ring, and nothing is wrong with that."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    ring.kick_it()
    target.do(_KICK, VringFile(0, True), (ring.kick,))
    target.enable(ring)
    base = target.stop(ring)
    require(base == 0, f"a ring that was started by a kick before its descriptor came is at {base}")


@SUITE.case("polling-instead-of-kicks", clauses=("V-40",), edges=(71,))
def polling_instead_of_kicks(target: Target) -> None:
    """SET_VRING_KICK with bit 8 asks for polling and comes without a descriptor."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    answer = target.attempt(_KICK, VringFile(0, False))
    if answer.kind not in (Kind.ACCEPTED, Kind.UNHEARD):
        raise Found(f"SET_VRING_KICK that asks for polling was {answer.kind.value}: the ring needs a kick descriptor")
    target.enable(ring)
    base = target.stop(ring)
    require(base == 0, f"an idle ring that is polled is at {base}")


@SUITE.case("no-descriptor-and-no-bit-8", clauses=("V-40",), edges=(72,), peers=("libvhost-user", "rust-vmm"))
def no_descriptor_and_no_bit_8(target: Target) -> None:
    """A kick, call or error message that announces a descriptor and has none is refused."""
    bad = [Bad(f"{request.name} without its descriptor", request, VringFile(0, True)) for request in (_KICK, _CALL)]
    refuses(target, bad, target.negotiated)


@SUITE.case("call-and-error-without-descriptor", clauses=("V-40", "V-43"), edges=(74,), peers=("QEMU", "DPDK"))
def call_and_error_without_descriptor(target: Target) -> None:
    """SET_VRING_CALL and SET_VRING_ERR with bit 8 take their descriptor away, and the ring runs."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    target.do(_CALL, VringFile(0, False))
    target.do(_ERR, VringFile(0, True), (ring.call,))
    target.do(_ERR, VringFile(0, False))
    target.do(_KICK, VringFile(0, True), (ring.kick,))
    target.enable(ring)
    ring.kick_it()
    base = target.stop(ring)
    require(base == 0, f"an idle ring without a call descriptor is at {base}")


@SUITE.case("reset-device", clauses=("V-39",), edges=(88,))
def reset_device(target: Target) -> None:
    """RESET_DEVICE stops the rings, keeps the connection, and the device can be set up again."""
    target.need(ProtocolFeature.RESET_DEVICE)
    target.negotiated()
    ring = target.ring()
    target.start(ring)
    target.do(FrontendRequest.RESET_DEVICE)
    used = ring.used_part()
    ring.offer()
    ring.kick_it()
    require(
        stays_true(lambda: ring.used_part() == used, _QUIET),
        "a ring is still served after RESET_DEVICE",
        "V-33",
        "V-39",
    )
    again = target.ring(0)
    again.start_at(0)
    target.do(FrontendRequest.SET_FEATURES, target.features)
    target.set_memory()
    target.start(again)
    target.stop(again)
