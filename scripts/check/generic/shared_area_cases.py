"""Areas that both sides share: inflight records, the dirty log (vhost-user, "Inflight I/O tracking", "Migration")."""

import os
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import InflightDescription, LogDescription
from protocol.virtio import LOG_ALL, FeatureBit
from scripts.check.generic.judging import Bad, judged, raise_worst, refuses
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import LOG_BYTES, Kind, Target
from scripts.check.machine.memory_file import MIB
from scripts.check.verdict import Found, NotExercised, Outcome, require, skip

_GET, _SET = FrontendRequest.GET_INFLIGHT_FD, FrontendRequest.SET_INFLIGHT_FD
_LOG = FrontendRequest.SET_LOG_BASE

_SIZE: Final = 64
_TOP: Final = 1 << 64
_LARGE: Final = 1 << 32


def _wanted(queues: int, size: int = _SIZE) -> InflightDescription:
    return InflightDescription(mmap_size=0, mmap_offset=0, num_queues=queues, queue_size=size)


def _area(target: Target, queues: int) -> tuple[InflightDescription, int]:
    """Return the area that the back-end gives, and its descriptor, which is closed with the case."""
    area = target.connection.query(_GET, _wanted(queues))
    require(isinstance(area, InflightDescription), "GET_INFLIGHT_FD was answered without an area")
    assert isinstance(area, InflightDescription)
    fds = target.connection.fds
    require(len(fds) == 1, f"the reply to GET_INFLIGHT_FD came with {len(fds)} descriptors instead of 1")
    return area, target.keep_fd(os.dup(fds[0]))


@SUITE.case("inflight-area", clauses=("V-46",), edges=(149,), peers=("public/cloud-hypervisor-2931",))
def inflight_area(target: Target) -> None:
    """GET_INFLIGHT_FD is answered with 24 bytes and one descriptor of a file that holds the area."""
    target.need(ProtocolFeature.INFLIGHT_SHMFD)
    target.negotiate()
    area, fd = _area(target, target.queues)
    end, there = area.mmap_offset + area.mmap_size, os.fstat(fd).st_size
    require(area.mmap_size > 0, "the inflight area has 0 bytes")
    require(end <= there, f"the inflight area ends at byte {end} of a file of {there}")
    least = target.queues * 16 * _SIZE
    require(area.mmap_size >= least, f"{area.mmap_size} bytes are less than 16 for each entry of the queues ({least})")
    asked, told = (target.queues, _SIZE), (area.num_queues, area.queue_size)
    require(asked == told, f"for (queues, size) {asked} the inflight area is described as {told}")


@SUITE.case(
    "inflight-area-given-back",
    clauses=("V-47",),
    edges=(149,),
    peers=("public/cloud-hypervisor-3503", "public/cloud-hypervisor-2931"),
)
def inflight_area_given_back(target: Target) -> None:
    """The area is taken back before the rings are set up, on this connection and on the next, and rings start."""
    target.need(ProtocolFeature.INFLIGHT_SHMFD)
    target.negotiate()
    area, fd = _area(target, target.queues)
    for _ in range(2):
        target.do(_SET, area, (fd,))
        target.set_memory()
        ring = target.ring()
        target.start(ring)
        base = target.stop(ring)
        require(base == 0, f"an idle ring with an inflight area was stopped at {base}")
        target.reconnect()
        target.negotiate()


@SUITE.case("inflight-area-of-any-size", clauses=("V-46",), edges=(149,), peers=("DPDK CVE-2021-3839",))
def inflight_area_of_any_size(target: Target) -> None:
    """GET_INFLIGHT_FD for 65535 queues of 65535 entries, or for none, is bounded or refused."""
    target.need(ProtocolFeature.INFLIGHT_SHMFD)
    outcomes: list[Outcome | None] = []
    for queues, size in ((0xFFFF, 0xFFFF), (0, 0), (1, 0), (0, _SIZE)):
        target.negotiate()
        answer = target.attempt(_GET, _wanted(queues, size))
        what = f"GET_INFLIGHT_FD of {queues} queues with {size} entries"
        outcome = judged(what, answer, None)
        given = int.from_bytes(answer.data[:8], "little")
        if answer.kind is Kind.ACCEPTED and given >= _LARGE:
            outcome = Found(f"{what} was given an area of {given} bytes")
        outcomes.append(outcome)
        target.reconnect()
    raise_worst(outcomes)


@SUITE.case("inflight-area-that-does-not-fit", clauses=("V-47",), edges=(149,), peers=("DPDK CVE-2021-3839",))
def inflight_area_that_does_not_fit(target: Target) -> None:
    """SET_INFLIGHT_FD without its descriptor, or with an area beyond its file, is refused."""
    target.need(ProtocolFeature.INFLIGHT_SHMFD)
    fd = target.keep_fd(os.memfd_create("balloon-check", os.MFD_CLOEXEC))
    os.ftruncate(fd, PAGE_SIZE)

    def area(size: int, offset: int, queues: int = 1) -> InflightDescription:
        return InflightDescription(mmap_size=size, mmap_offset=offset, num_queues=queues, queue_size=_SIZE)

    refuses(target, [Bad("SET_INFLIGHT_FD without its descriptor", _SET, area(PAGE_SIZE, 0))], target.negotiate)
    bad = [
        Bad("SET_INFLIGHT_FD of an area that wraps", _SET, area(_TOP - PAGE_SIZE, 2 * PAGE_SIZE), (fd,)),
        Bad("SET_INFLIGHT_FD of an area beyond its file", _SET, area(MIB, 16 * MIB), (fd,)),
        Bad("SET_INFLIGHT_FD of 65535 queues in 4096 bytes", _SET, area(PAGE_SIZE, 0, 0xFFFF), (fd,)),
    ]
    target.reconnect()
    refuses(target, bad, target.negotiate, done=Found)


@SUITE.case("log-base", clauses=("V-48",), edges=(142,), peers=("public/rust-vmm-vhost-217", "QEMU"))
def log_base(target: Target) -> None:
    """SET_LOG_BASE is answered exactly once, with and without NEED_REPLY: QEMU waits for it."""
    target.need(ProtocolFeature.LOG_SHMFD)
    target.negotiate()
    target.set_log()
    target.check_alive()
    fd = target.keep_fd(os.memfd_create("balloon-check-log", os.MFD_CLOEXEC))
    os.ftruncate(fd, LOG_BYTES)
    answer = target.attempt(_LOG, LogDescription(LOG_BYTES, 0), (fd,))
    require(answer.kind is Kind.ACCEPTED, f"SET_LOG_BASE with NEED_REPLY was {answer.kind.value}")
    target.check_alive()
    if any(answer.data):
        raise Found(
            f"SET_LOG_BASE is answered with {answer.data.hex()}: where only 0 counts as done, it is taken for refused"
        )


@SUITE.case("log-beyond-its-file", clauses=("V-48",), edges=(142,), peers=("DPDK CVE-2020-10722",))
def log_beyond_its_file(target: Target) -> None:
    """SET_LOG_BASE whose log wraps, lies beyond its file, or has no file is refused with its one reply."""
    target.need(ProtocolFeature.LOG_SHMFD)
    fd = target.keep_fd(os.memfd_create("balloon-check-log", os.MFD_CLOEXEC))
    os.ftruncate(fd, PAGE_SIZE)
    pipe = target.keep_pipe()
    outcomes: list[Outcome | None] = []
    for what, size, offset, given, done in (
        ("whose end wraps", PAGE_SIZE, _TOP - PAGE_SIZE, fd, None),
        ("of 2^64 - 4096 bytes", _TOP - PAGE_SIZE, 0, fd, None),
        ("in a pipe", PAGE_SIZE, 0, pipe.fd, None),
        ("beyond its file", LOG_BYTES, 0, fd, Found),
    ):
        target.negotiate()
        answer = target.attempt(_LOG, LogDescription(size, offset), (given,))
        # Its reply has no value that says error in the text; front-ends read the reply, and look at nothing in it.
        outcomes.append(judged(f"a log {what}", answer, done))
        target.reconnect()
    raise_worst(outcomes)


@SUITE.case("log-without-descriptor", clauses=("V-48", "V-40"), edges=(142,))
def log_without_descriptor(target: Target) -> None:
    """SET_LOG_BASE without its descriptor is refused or ends the connection, and nothing crashes."""
    target.need(ProtocolFeature.LOG_SHMFD)
    target.negotiate()
    answer = target.attempt(_LOG, LogDescription(LOG_BYTES, 0))
    outcome = judged("SET_LOG_BASE without a descriptor", answer, Found)
    if outcome is not None and not isinstance(outcome, NotExercised):
        raise outcome


@SUITE.case("log-stays-clean", clauses=("V-49",), edges=(143,), peers=("public/dpdk-vhost-vfe-75",))
def log_stays_clean(target: Target) -> None:
    """After logging was turned off again nothing is marked in the log."""
    target.need(ProtocolFeature.LOG_SHMFD)
    if not target.facts.offers(FeatureBit.VHOST_F_LOG_ALL):
        skip("the back-end does not offer VHOST_F_LOG_ALL")
    target.negotiated()
    log = target.set_log()
    ring = target.ring()
    target.start(ring)
    target.do(FrontendRequest.SET_FEATURES, target.features | LOG_ALL)
    target.do(FrontendRequest.SET_FEATURES, target.features)
    os.pwrite(log, bytes(LOG_BYTES), 0)
    ring.kick_it()
    target.stop(ring)
    marked = [at for at, byte in enumerate(os.pread(log, LOG_BYTES, 0)) if byte]
    require(not marked, f"with logging off {len(marked)} bytes of the log were set, the first for page {marked[:1]}")
