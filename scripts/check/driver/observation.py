"""What a device has seen of its driver: lines of JSON from the process that is the device, and their meaning."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from protocol.recording.records import Record, WireMessage
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel
from protocol.vhost_user_payloads import Payload
from protocol.virtio import has_feature
from scripts.check.recording.words import read_message

Buffer = tuple[int, int]
"""A guest address and a length in bytes."""

UNKNOWN_FEATURE: Final = 55
"""A feature bit that is offered and has no meaning: it is reserved for the future (virtio 1.2, 6)."""

WRONG_REPLY_SUFFIX: Final = ".wrong-reply"
"""A file of this name beside that of the observations asks the device for a wrong reply."""

DATA_MAX: Final = 8192
"""Bytes of what a chain has for the device to read that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenChain:
    """A chain as it was taken from a ring. ``t`` is when (CLOCK_MONOTONIC, seconds).

    ``data`` is what the device could read of it, in hexadecimal. ``touched`` are guest addresses of pages that were
    discarded at once and were there again before the chain was given back. ``unused`` are those of its writable
    buffers in which there was nothing that could be discarded. ``fills`` says what the first pages of a report held
    when it came, each a 32-bit number that filled the page, or -1; ``poison`` is the poison_val of that time.
    ``avail_flags`` is the driver's word on interrupts.
    ``ahead`` is how many chains of the queue the device had in hand.
    """

    t: float
    queue: str
    index: int
    readable: Sequence[Buffer]
    writable: Sequence[Buffer]
    indirect: bool
    data: str = ""
    touched: Sequence[int] = ()
    unused: Sequence[Buffer] = ()
    fills: Sequence[int] = ()
    poison: int = 0
    avail_flags: int = 0
    ahead: int = 0

    def line(self) -> str:
        """Return the chain as a line of JSON."""
        return json.dumps({"kind": "chain", **asdict(self)})

    @property
    def bytes(self) -> bytes:
        """What the device could read."""
        return bytes.fromhex(self.data)


@dataclass(slots=True, kw_only=True)
class Observed:
    """All that was seen of one driver.

    ``events`` are those of the device's process, ``marks`` what the scenario did and when, ``faults`` what the device
    noticed beside the chains: kicks that did not come, balloon pages that were used. ``records`` are what was recorded
    of the session: messages, signals, chains with their descriptors. ``accepted`` is what the driver accepted, also of
    what was not offered. ``visits`` are the sessions before it that ended without features.
    """

    offered: int = 0
    accepted: int = 0
    chains: list[SeenChain] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    marks: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    visits: int = 0

    def take_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take events of the device's process. A session that ended before features were accepted was no driver's: a
        trial connection, or one that asked for the features alone. Nothing of it counts but that it came."""
        for event in events:
            self.events.append(event)
            if event["event"] == "disconnected" and not self.named("features"):
                self.events.clear()
                self.visits += 1

    def take_lines(self, lines: Iterable[str]) -> None:
        """Take lines that the process of the device has written."""
        for line in lines:
            entry = json.loads(line)
            kind = entry.pop("kind")
            if kind == "chain":
                for name in ("readable", "writable", "unused"):
                    entry[name] = [tuple(one) for one in entry[name]]
                self.chains.append(SeenChain(**entry))
            elif kind == "offered":
                self.offered = entry["features"]
                self.accepted = entry["accepted"]
            else:
                self.faults.append({"fault": kind, **entry})

    def requests(self, *wanted: FrontendRequest) -> list[tuple[WireMessage, Payload]]:
        """Return the front-end's messages of these requests, all without one, each with its payload: None for one that
        has none or is malformed."""
        return [
            (message, read.payload)
            for message in self.messages(Channel.FRONTEND_REQUESTS)
            if (read := read_message(message)).request in (wanted or FrontendRequest)
        ]

    def messages(self, stream: Channel) -> list[WireMessage]:
        """Return the messages of a stream."""
        return [one for one in self.records if isinstance(one, WireMessage) and one.stream is stream]

    def of(self, queue: str) -> list[SeenChain]:
        """Return the chains of a queue."""
        return [chain for chain in self.chains if chain.queue == queue]

    def named(self, event: str) -> list[Mapping[str, Any]]:
        """Return the events of this name."""
        return [one for one in self.events if one["event"] == event]

    def faults_of(self, fault: str) -> list[Mapping[str, Any]]:
        """Return what the device noticed of this kind."""
        return [one for one in self.faults if one["fault"] == fault]

    @property
    def negotiated(self) -> int:
        """The features that the driver accepted last."""
        accepted = self.named("features")
        return int(accepted[-1]["negotiated"]) if accepted else 0

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return has_feature(self.negotiated, feature)
