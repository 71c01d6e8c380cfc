"""What a device has seen of its driver: lines of JSON from the process that is the device, and their meaning."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from protocol.virtio import has_feature

Buffer = tuple[int, int]
"""A guest address and a length in bytes."""

DATA_MAX: Final = 8192
"""Bytes of what a chain has for the device to read that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenChain:
    """A chain as it was taken from a ring. ``t`` is when (CLOCK_MONOTONIC, seconds).

    ``data`` is what the device could read of it, in hexadecimal. ``touched`` are guest addresses of pages that were
    discarded at once and were there again before the chain was given back. ``unused`` are those of its writable
    buffers in which there was nothing that could be discarded. ``avail_flags`` is the driver's word on interrupts.
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
    noticed beside the chains: kicks that did not come, balloon pages that were used.
    """

    offered: int = 0
    chains: list[SeenChain] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    marks: dict[str, Any] = field(default_factory=dict)

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
            else:
                self.faults.append({"fault": kind, **entry})

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
