"""Descriptors that come with messages (vhost-user, "Ancillary data"): whose they are, and when they are closed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.message_limits import FDS_MAX
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import MemoryTable, VringFile, VringState
from scripts.check.generic.judging import CLOSED_LATE, KEPT, Bad, raise_worst
from scripts.check.generic.memory_cases import region
from scripts.check.generic.ring import Ring
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import Kind, Target
from scripts.check.generic.watched_file import WatchedMemory, WatchedPipe, still_held
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.memory_file import MIB
from scripts.check.verdict import Failed, Found, HungUpError, Outcome, require, skip

_KICK, _CALL, _ERR = FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR

_AT_ONCE: Final = 0.5
_SOON: Final = 2.0
_O_CLOEXEC: Final = 0o2000000


@SUITE.case(
    "descriptors-that-may-not-be",
    clauses=("V-6",),
    edges=(11,),
    peers=("DPDK CVE-2019-14818", "public/spdk-2852"),
)
def descriptors_that_may_not_be(target: Target) -> None:
    """Descriptors on a message that has none, or of a refused one, are closed, at the latest with the connection."""
    target.negotiate()
    pipes: dict[str, WatchedPipe] = {}
    for message in _unwanted(target):
        if not target.connection.is_usable():
            target.begin_again()
        pipe = pipes[message.what] = target.keep_pipe()
        target.attempt(message.request, message.payload, (pipe.fd,) * len(message.fds))
    late = still_held(pipes, _AT_ONCE) if target.connection.is_usable() else []
    target.reconnect()
    kept = still_held(pipes, _SOON)
    outcomes: list[Outcome | None] = [Failed(what + KEPT) for what in kept]
    raise_worst([*outcomes, *(Found(what + CLOSED_LATE) for what in late if what not in kept)])


def _unwanted(target: Target) -> Iterator[Bad]:
    one, two = (0,), (0, 0)
    yield Bad("SET_OWNER", FrontendRequest.SET_OWNER, None, one)
    yield Bad("SET_FEATURES", FrontendRequest.SET_FEATURES, target.features, two)
    yield Bad("SET_VRING_NUM", FrontendRequest.SET_VRING_NUM, VringState(0, 64), one)
    yield Bad("SET_VRING_CALL that announces none", _CALL, VringFile(0, False), one)
    yield Bad("SET_VRING_CALL with two", _CALL, VringFile(0, True), two)
    yield Bad("a message too short", FrontendRequest.SET_FEATURES, bytes(3), one)
    yield Bad("request 1000", 1000, None, two)
    if 0 < target.facts.queues < 0xFF:
        yield Bad("SET_VRING_CALL of queue 255", _CALL, VringFile(0xFF, True), one)


@SUITE.case("descriptors-as-many-as-can-be", clauses=("V-6",), edges=(12, 13), peers=("DPDK 218daf1664",))
def descriptors_as_many_as_can_be(target: Target) -> None:
    """Of 253 descriptors on one message none is kept after the connection, whether the message is refused or not."""
    outcomes: list[Outcome | None] = []
    pipes: dict[str, WatchedPipe] = {}
    for what, request, payload in (
        ("SET_VRING_KICK", _KICK, VringFile(0, True)),
        ("SET_MEM_TABLE", FrontendRequest.SET_MEM_TABLE, MemoryTable((region(),))),
    ):
        target.begin_again()
        pipe = pipes[f"{what} with 253 descriptors"] = target.keep_pipe()
        answer = target.attempt(request, payload, (pipe.fd,) * FDS_MAX)
        if answer.kind is Kind.ACCEPTED:
            outcomes.append(Found(f"{what} with 253 descriptors was acknowledged with 0"))
    target.reconnect()
    raise_worst([*outcomes, *(Failed(what + KEPT) for what in still_held(pipes, _SOON))])


@SUITE.case("descriptors-with-every-byte", clauses=("V-6",), edges=(12,), peers=("DPDK CVE-2019-14818",))
def descriptors_with_every_byte(target: Target) -> None:
    """Descriptors on every byte of one message do not pile up for ever."""
    pipe = target.keep_pipe()
    with contextlib.suppress(Failed, HungUpError):  # that is an answer, too
        _send_with_every_byte(target, pipe)
    target.reconnect()
    require(pipe.is_released(_SOON), "descriptors that came with the bytes of a header outlive the connection")


def _send_with_every_byte(target: Target, pipe: WatchedPipe) -> None:
    header = int(FrontendRequest.SET_OWNER).to_bytes(4, "little") + bytes([1, 0, 0, 0]) + bytes(4)
    for at in range(len(header)):
        target.connection.send(header[at : at + 1], (pipe.fd,) * 20)
    target.check_alive()


# The text does not say that a front-end may replace the kick descriptor of a running ring, and crosvm refuses it: a
# back-end that does not survive it has a FINDING in both of these cases. QEMU replaces call descriptors all the time.


@SUITE.case("replaced-descriptors", clauses=("V-42",), edges=(73, 75), peers=("libvhost-user", "DPDK CVE-2019-14818"))
def replaced_descriptors(target: Target) -> None:
    """A kick, call or error descriptor that is replaced is closed."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    kept = []
    for request, ours in ((_CALL, ring.call), (_ERR, ring.call), (_KICK, ring.kick)):
        pipe = target.keep_pipe(reading=request is _KICK)
        target.do(request, VringFile(0, True), (pipe.fd,))
        if request is _KICK:
            _replace_kick(target, ours)
        else:
            target.do(request, VringFile(0, True), (ours,))
        if not pipe.is_released(_SOON):
            kept.append(request.name)
    target.enable(ring)
    ring.kick_it()
    target.stop(ring)
    if kept:
        raise Found(f"descriptors that were replaced are kept open: {', '.join(kept)}")


@SUITE.case("kick-replaced-on-a-running-ring", clauses=("V-42",), edges=(73,), peers=("libvhost-user", "crosvm"))
def kick_replaced_on_a_running_ring(target: Target) -> None:
    """The kick descriptor of a running ring can be replaced, and the ring stays where it is."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(21)
    target.start(ring, 21)
    for _ in range(5):
        _replace_kick(target, target.keep_fd(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)))
    base = target.stop(ring)
    require(base == 21, f"after its kick descriptor was replaced a ring at index 21 is at {base}")


def _replace_kick(target: Target, eventfd: int) -> None:
    try:
        target.do(_KICK, VringFile(0, True), (eventfd,))
        target.check_alive()
    except (Failed, HungUpError) as error:
        raise Found(f"the kick descriptor of a running ring cannot be replaced: {error}") from error


@SUITE.case("odd-kick-descriptors", clauses=("V-7",), edges=(72,))
def odd_kick_descriptors(target: Target) -> None:
    """A kick descriptor that cannot be waited for, or is at its end, is refused or useless, and stops nothing else."""
    memory = target.keep_fd(os.memfd_create("balloon-check", os.MFD_CLOEXEC))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(writing)
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ended = []
    for what, fd in {"a file": memory, "a pipe at its end": reading, "a directory": directory}.items():
        target.negotiated()
        target.set_up(target.ring())
        target.attempt(_KICK, VringFile(0, True), (fd,))
        if target.connection.is_usable():
            target.attempt(FrontendRequest.SET_VRING_ENABLE, VringState(0, 1))
        if not (target.connection.is_usable() and target.connection.is_usable()):
            ended.append(what)
        target.reconnect()
    for fd in (reading, directory):
        os.close(fd)
    target.check_alive()
    if ended:
        raise Found(f"as a kick descriptor {', '.join(ended)} ended the connection; QEMU then loses the device")


@SUITE.case("close-on-exec", edges=(14,))
def close_on_exec(target: Target) -> None:
    """Received descriptors are close-on-exec: a program that the back-end starts does not inherit them."""
    target.negotiated()
    ring = target.ring()
    target.set_up(ring)
    target.do(_KICK, VringFile(0, True), (ring.kick,))
    found = dict(_flags_of_events(target.pid, _event_ids(ring)))
    if not found:
        skip(f"the descriptors of process {target.pid} do not show the event descriptors that were sent")
    inherited = [fd for fd, flags in found.items() if not flags & _O_CLOEXEC]
    if inherited:
        raise Found(f"{len(inherited)} of {len(found)} event descriptors of the back-end are not close-on-exec")


def _event_ids(ring: Ring) -> set[str]:
    ids = {_field(Path(f"/proc/self/fdinfo/{fd}"), "eventfd-id") for fd in (ring.kick, ring.call)}
    return ids - {""}


def _flags_of_events(pid: int, ids: set[str]) -> Iterator[tuple[int, int]]:
    """Yield number and flags of those descriptors of a process that are one of the event descriptors ``ids``."""
    try:
        entries = list(Path(f"/proc/{pid}/fdinfo").iterdir())
    except OSError as error:
        skip(f"the descriptors of process {pid} may not be seen: {error.strerror}")
    for entry in entries:
        if _field(entry, "eventfd-id") in ids:
            yield int(entry.name), int(_field(entry, "flags"), 8)


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name + ":")), "")


@SUITE.case("session-leaves-nothing", clauses=("V-8", "V-6"), edges=(10,), peers=("public/spdk-2852",))
def session_leaves_nothing(target: Target) -> None:
    """When the connection ends in mid-flight, memory, kick, call and error descriptors are given up."""
    target.negotiate()
    memory = target.keep(WatchedMemory(2 * MIB))
    target.do(FrontendRequest.SET_MEM_TABLE, MemoryTable((region(),)), (memory.fd,))
    pipes = {request: target.keep_pipe(reading=request is _KICK) for request in (_KICK, _CALL, _ERR)}
    for request, pipe in pipes.items():
        target.do(request, VringFile(0, True), (pipe.fd,))
    target.reconnect()
    kept = still_held({"SET_MEM_TABLE": memory, **{request.name: pipe for request, pipe in pipes.items()}}, _SOON)
    require(not kept, f"descriptors outlive their connection: {', '.join(kept)}")


@SUITE.case("hundred-sessions", clauses=("V-8",), edges=(148,), peers=("DPDK CVE-2020-10726",), quick=False)
def hundred_sessions(target: Target) -> None:
    """A hundred sessions, one after another, leave the back-end with as many descriptors and mappings as one."""
    if target.backend.ends_with_front_end:
        skip("the back-end's process ends with its front-end")
    pid = target.pid
    before = _count(pid)
    for number in range(100):
        target.reconnect()
        target.negotiated()
        if number % 2:
            ring = target.ring()
            target.start(ring)
    target.reconnect()
    # A helper, a buffer or a poll set may have come to stay, one for each session may not.
    few = 20
    flat = becomes_true(lambda: all(now <= then + few for now, then in zip(_count(pid), before, strict=True)))
    require(
        flat, f"descriptors and shared mappings of process {pid}: {before} before 100 sessions, {_count(pid)} after"
    )


def _count(pid: int) -> tuple[int, int]:
    """Return the number of descriptors and of shared mappings of a process. Private ones are its own matter: stacks."""
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        mappings = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        return descriptors, sum(line.split(maxsplit=2)[1][3] == "s" for line in mappings)
    except OSError as error:
        skip(f"the descriptors of process {pid} may not be seen: {error.strerror}")


@SUITE.case("second-front-end", clauses=("V-7",), edges=(147,))
def second_front_end(target: Target) -> None:
    """A second front-end is served, refused or left waiting, and the first goes on undisturbed."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(2)
    target.start(ring, 2)
    other = target.backend.second()
    if other is not None:
        with contextlib.closing(other), contextlib.suppress(HungUpError):
            other.send(bytes(5))
    target.check_alive()
    base = target.stop(ring)
    require(base == 2, f"while a second front-end came and went, the first one's ring went from 2 to {base}")


@SUITE.case("inflight-needs-its-feature", clauses=("V-46",), edges=(149,))
def inflight_needs_its_feature(target: Target) -> None:
    """A message of a protocol feature that was not negotiated is refused, and the connection goes on."""
    target.need(ProtocolFeature.INFLIGHT_SHMFD)
    target.negotiate(without=1 << ProtocolFeature.INFLIGHT_SHMFD)
    pipe = target.keep_pipe()
    answer = target.attempt(FrontendRequest.SET_INFLIGHT_FD, bytes(24), (pipe.fd,))
    if answer.kind is Kind.HUNG_UP:
        raise Found("SET_INFLIGHT_FD without INFLIGHT_SHMFD ended the connection")
    require(answer.kind is not Kind.SILENT, "SET_INFLIGHT_FD with NEED_REPLY was not answered", "V-10")
    require(pipe.is_released(_SOON) or answer.kind is Kind.ACCEPTED, "its descriptor is kept", "V-6")
