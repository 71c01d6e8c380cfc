"""The journal of a session: the vhost-user messages that set up a session as it is now.

It is compacted all the way. After each message that was carried out, :func:`compact` writes down the shortest list of
messages that leads a new session to where this one is. It starts from the session and not from the messages that came,
because those do not tell alone what counts: a refused message may have started a ring that is parked, a question may
have stopped one (User Mode Linux), and a ring may have broken. What no message can tell is in :class:`Standing`.

The order of the list is chosen so that a ring starts last, when all is there, and so that nothing is refused on the
way: addresses come before the memory that they lie in, sizes after the features that allow them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final

from host.supervision.packets import UNREADABLE
from host.vhost_user.session import Session
from host.vhost_user.vring import RingState, Vring
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import InflightDescription, LogDescription, Payload, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, DeviceStatus
from protocol.virtio_balloon import QueueDialect

FORMAT: Final = "vhost-user-balloon journal"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """The bytes of one message, and the numbers of its files in the journal."""

    data: bytes
    files: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFiles:
    """The numbers of the files that a session holds. ``kicks``, ``calls`` and ``errs`` are by queue."""

    regions: tuple[int, ...] = ()
    kicks: Mapping[int, int] = field(default_factory=dict)
    calls: Mapping[int, int] = field(default_factory=dict)
    errs: Mapping[int, int] = field(default_factory=dict)
    channel: int | None = None
    log: tuple[LogDescription, int] | None = None
    log_call: int | None = None
    inflight: tuple[InflightDescription, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What no message tells of a session. ``recovers`` has the rings that have not run since an inflight file came, the
    rest is as in :class:`Session`."""

    left_at: tuple[int, ...] = ()
    recovers: tuple[int, ...] = ()
    is_quiet: bool = False
    features_accepted: bool = False
    dialect: str = QueueDialect.NEGOTIATED.value
    needs_reset: bool = False
    poison_is_old: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """All that leads a new session to where this one is.

    ``state`` is the device's own state as it travels with a machine, ``stated_bytes`` the memory that an operator says
    the guest has, 0 if that is not said, ``records`` the file that notes the chains in flight of a packed ring that
    runs, by queue. ``beside`` is what else its process knows: what inhibits discards, what the state does not count.
    """

    entries: tuple[Entry, ...] = ()
    standing: Standing = field(default_factory=Standing)
    state: str = ""
    stated_bytes: int = 0
    records: Mapping[int, int] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> set[int]:
        """The numbers of all files that it needs."""
        return {number for entry in self.entries for number in entry.files} | set(self.records.values())

    def build(self) -> bytes:
        """Return it as one JSON document."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "messages": [[entry.data.hex(), *entry.files] for entry in self.entries],
            "standing": asdict(self.standing),
            "state": self.state,
            "stated_bytes": self.stated_bytes,
            "records": list(self.records.items()),
            "beside": self.beside,
        }
        return json.dumps(document, separators=(",", ":")).encode()


def parse_journal(data: bytes) -> Journal:
    """Return the journal that a document holds, an empty one for no bytes.

    Raises:
        VhostUserError: it is no such document, or of another version.
    """
    if not data:
        return Journal()
    try:
        document: dict[str, Any] = json.loads(data)
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise VhostUserError(f"a journal of version {document['version']!r:.20}, not {VERSION}")
        standing: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document["standing"].items()
        }
        return Journal(
            entries=tuple(Entry(bytes.fromhex(text), tuple(files)) for text, *files in document["messages"]),
            standing=Standing(**standing),
            state=document["state"],
            stated_bytes=document["stated_bytes"],
            records=dict(document["records"]),
            beside=document["beside"],
        )
    except UNREADABLE as error:
        raise VhostUserError("a journal that cannot be read") from error


def compact(session: Session, held: HeldFiles) -> Iterator[Entry]:
    """Yield the messages that lead a new session to where ``session`` is."""
    yield from _of_session(session, held)
    for vring in session.vrings:
        yield from _of_ring(session, vring, held)
    for region, file in zip(session.table.regions, held.regions, strict=True):
        yield _entry(FrontendRequest.ADD_MEM_REG, region, file)
    for vring in session.vrings:
        if vring.enabled is not _is_enabled_by_features(session):
            yield _entry(FrontendRequest.SET_VRING_ENABLE, VringState(vring.index, int(vring.enabled)))
        if vring.size and not _is_started(vring):
            # Last: with its size an enabled ring that is notified in-band would start.
            yield _entry(FrontendRequest.SET_VRING_NUM, VringState(vring.index, vring.size))


def _of_session(session: Session, held: HeldFiles) -> Iterator[Entry]:
    if session.protocol_features:
        yield _entry(FrontendRequest.SET_PROTOCOL_FEATURES, session.protocol_features)
    if session.owned:
        yield _entry(FrontendRequest.SET_OWNER)
    if held.channel is not None:
        yield _entry(FrontendRequest.SET_BACKEND_REQ_FD, None, held.channel)
    if session.has_features:
        yield _entry(FrontendRequest.SET_FEATURES, session.features)
    if status := session.status & ~DeviceStatus.DEVICE_NEEDS_RESET:
        yield _entry(FrontendRequest.SET_STATUS, status)
    if held.log is not None:
        yield _entry(FrontendRequest.SET_LOG_BASE, *held.log)
    if held.log_call is not None:
        yield _entry(FrontendRequest.SET_LOG_FD, None, held.log_call)
    if held.inflight is not None:
        yield _entry(FrontendRequest.SET_INFLIGHT_FD, *held.inflight)


def _of_ring(session: Session, vring: Vring, held: HeldFiles) -> Iterator[Entry]:
    index = vring.index
    if vring.size and _is_started(vring):
        yield _entry(FrontendRequest.SET_VRING_NUM, VringState(index, vring.size))
    if vring.address is not None:
        yield _entry(FrontendRequest.SET_VRING_ADDR, vring.address)
        if not vring.address_set:
            yield _entry(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
    if vring.base:
        yield _entry(FrontendRequest.SET_VRING_BASE, VringState(index, vring.base))
    for request, files in ((FrontendRequest.SET_VRING_CALL, held.calls), (FrontendRequest.SET_VRING_ERR, held.errs)):
        if (file := files.get(index)) is not None:
            yield _entry(request, VringFile(index, True), file)
    if _is_started(vring):
        kick = held.kicks.get(index)
        kick_files = () if kick is None else (kick,)
        yield _entry(FrontendRequest.SET_VRING_KICK, VringFile(index, kick is not None), *kick_files)


def _is_started(vring: Vring) -> bool:
    # A broken ring is left as one that was stopped: it is not touched until it is set up anew.
    return vring.state in (RingState.STARTED, RingState.RUNNING)


def _is_enabled_by_features(session: Session) -> bool:
    return session.has_features and not session.features & PROTOCOL_FEATURES


@lru_cache(1024)  # most of a journal is as it was one message before
def _entry(request: FrontendRequest, payload: Payload = None, *files: int) -> Entry:
    return Entry(build_message(request, payload), files)


def standing_of(session: Session) -> Standing:
    """Return what no message tells of ``session``."""
    return Standing(
        left_at=tuple(vring.left_at for vring in session.vrings),
        recovers=tuple(vring.index for vring in session.vrings if vring.recovers),
        is_quiet=session.is_quiet,
        features_accepted=session.features_accepted,
        dialect=session.queue_numbers.dialect.value,
        needs_reset=bool(session.status & DeviceStatus.DEVICE_NEEDS_RESET),
        poison_is_old=session.balloon.poison_is_old,
    )


def prepare(session: Session, standing: Standing) -> None:
    """Prepare a new session for the messages of a journal: its rings go on where their driver has them."""
    session.queue_numbers.dialect = QueueDialect(standing.dialect)
    for vring in session.vrings:
        vring.recovers = True


def settle(session: Session, standing: Standing) -> None:
    """Give a session what no message tells, after the messages of its journal."""
    for vring, left_at in zip(session.vrings, standing.left_at, strict=False):
        vring.left_at = left_at
    session.is_quiet = standing.is_quiet
    session.features_accepted = standing.features_accepted
    session.queue_numbers.dialect = QueueDialect(standing.dialect)
    session.balloon.poison_is_old = standing.poison_is_old
    if standing.needs_reset:
        session.status |= DeviceStatus.DEVICE_NEEDS_RESET
    # What changed while no process served the device is not known to its driver.
    session.config_change_pending |= any(vring.address is not None for vring in session.vrings)


def end_recovery(session: Session, standing: Standing) -> None:
    """Take note that the message that was in hand was carried out: rings that start from now on do so where the
    front-end says."""
    for vring in session.vrings:
        vring.recovers = vring.recovers and vring.index in standing.recovers
