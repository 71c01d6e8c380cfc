"""A device's own state as it travels with a virtual machine that moves: one small JSON document.

It holds the state that neither messages nor the guest's memory carry to the destination: the balloon's target and size,
the poison value, the last command id of free page hinting, the interval of statistics, and the counters. A round of
hinting does not travel: the destination gives the driver its blocks back (``DONE``) and never uses an id of the source
again.

The sender of a state is not trusted: every field is checked, and unknown fields are refused.

Source: vhost-user specification, "Migrating back-end state".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from protocol.errors import VhostUserError
from protocol.virtio_balloon import NUM_PAGES_MAX

FORMAT: Final = "vhost-user-balloon device state"
VERSION: Final = 1

STATE_BYTES_MAX: Final = 4096
"""Longest state that is taken. What is written is far shorter, and a pipe takes this much in one piece (PIPE_BUF)."""

STATISTICS_INTERVAL_MIN: Final = 0.01
"""Shortest interval that travels, in seconds."""

_COUNTERS_MAX: Final = 64
_U32_MAX: Final = (1 << 32) - 1
_U64_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """The fields. ``num_pages`` and ``actual`` count 4096-byte pages, ``statistics_interval`` seconds (0: on demand).

    ``poison_val`` is None if the driver has not told it. ``last_command_id`` is the id of the hinting round begun last,
    1 before the first. ``counters`` are the metrics by name.
    """

    num_pages: int
    actual: int
    poison_val: int | None
    last_command_id: int
    statistics_interval: float
    counters: Mapping[str, int]

    def build(self) -> bytes:
        """Return the document."""
        document = {"format": FORMAT, "version": VERSION}
        document |= {name: getattr(self, name) for name in _NAMES} | {"counters": dict(self.counters)}
        return json.dumps(document, separators=(",", ":")).encode()


_NAMES: Final = tuple(field.name for field in fields(DeviceState))


def parse_state(data: bytes) -> DeviceState:
    """Return the state that a document holds.

    Raises:
        VhostUserError: it is too long, no such document, of another version, or a field is not what it has to be.
    """
    if len(data) > STATE_BYTES_MAX:
        raise VhostUserError(f"a device state of more than {STATE_BYTES_MAX} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VhostUserError("the device state is not a JSON document") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise VhostUserError("the device state is not one of this device")
    if (version := document.get("version")) != VERSION:
        raise VhostUserError(f"the device state has version {version!r:.20}, not {VERSION}")
    if strange := sorted(document.keys() ^ {"format", "version", *_NAMES}):
        raise VhostUserError(f"the device state lacks or has too much: {strange[0]!r:.40}")
    return DeviceState(
        num_pages=_number(document, "num_pages", NUM_PAGES_MAX),
        actual=_number(document, "actual", NUM_PAGES_MAX),
        poison_val=None if document["poison_val"] is None else _number(document, "poison_val", _U32_MAX),
        last_command_id=_number(document, "last_command_id", _U32_MAX, least=1),
        statistics_interval=_seconds(document, "statistics_interval"),
        counters=_counters(document["counters"]),
    )


def _number(document: Mapping[str, object], name: str, most: int, *, least: int = 0) -> int:
    value = document[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise VhostUserError(f"the device state's {name:.40} is not a number from {least} to {most}")
    return value


def _seconds(document: Mapping[str, object], name: str) -> float:
    value = document[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _U32_MAX:
        raise VhostUserError(f"the device state's {name} is not a time in seconds")
    if 0 < value < STATISTICS_INTERVAL_MIN:  # requests at a shorter interval would keep the daemon busy
        raise VhostUserError(f"the device state's {name} is below {STATISTICS_INTERVAL_MIN} seconds")
    return float(value)


def _counters(value: object) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > _COUNTERS_MAX:
        raise VhostUserError(f"the device state's counters are not an object of at most {_COUNTERS_MAX} members")
    return {name: _number(value, name, _U64_MAX) for name in value}
