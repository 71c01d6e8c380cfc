"""Reads a socket and its device from a table: one ``[[vm]]`` of a file, or the words of a ``--vm``.

::

    [[vm]]
    socket-path = "/run/vms/web.sock"
    name = "web"
    features = { packed = true }
    guest-memory = "4G"

The keys are the names of the daemon's options, whose values hold where a table has none of its own.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from host.balloon.balloon_statistics import STATISTICS_INTERVAL_MAX
from host.balloon.offered_features import FEATURE_NAMES, parse_features
from host.balloon.personality import PERSONALITIES
from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions, DeviceSettings, balloon_pages
from host.configuration.option_values import parse_group, parse_mode
from host.configuration.vm_socket import Gathered, SocketDefaults, VmSocket
from host.vhost_user.queue_numbers import CHOICES
from protocol.configuration.toml_table import Table
from protocol.errors import UsageError

Value = TypeVar("Value")

DISCARDS: Final = ("punch", "none")
"""Values of ``discard``: give pages back, or acknowledge only."""

KEYS: Final = (
    "socket-path",
    "name",
    "socket-mode",
    "socket-group",
    "personality",
    "features",
    "queue-numbers",
    "discard",
    "balloon",
    "in-band",
    "statistics-interval",
    "guest-memory",
    "guest-reserve",
)
"""What a table may have."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")
_SWITCH: Final = {"on": True, "off": False}


def read_vm(table: Table, defaults: SocketDefaults, mistakes: Gathered) -> VmSocket:
    """Return the socket of ``table``. What is wrong is added to ``mistakes``, and the result then of no use."""
    take = mistakes.take
    path = take(lambda: Path(_text(table, "socket-path")), Path())
    name = take(lambda: _name(table), "")
    settings = _settings(table, defaults.settings, mistakes)
    mode = take(lambda: _parsed(table, "socket-mode", parse_mode), None)
    group = take(lambda: _parsed(table, "socket-group", parse_group), None)
    mistakes.add(*table.unknown())
    device = take(lambda: _device(table, settings, name, path), DEFAULT_DEVICE)
    return VmSocket(path=path, device=device, access=defaults.access(mode, group), place=table.path)


def _device(table: Table, settings: DeviceSettings, name: str, path: Path) -> DeviceOptions:
    try:
        return settings.options(name, path)
    except UsageError as error:  # the balloon was looked at before
        raise table.mistake("features", str(error).removeprefix("--features: ")) from error


def _settings(table: Table, given: DeviceSettings, mistakes: Gathered) -> DeviceSettings:
    take, discard = mistakes.take, DISCARDS[0 if given.discard else 1]
    most = STATISTICS_INTERVAL_MAX
    return DeviceSettings(
        personality=take(
            lambda: table.text("personality", given.personality, allowed=PERSONALITIES), given.personality
        ),
        switches={**given.switches, **_features(table, mistakes)},
        queue_numbers=take(lambda: _queue_numbers(table, given.queue_numbers), None),
        discard=take(lambda: table.text("discard", discard, allowed=DISCARDS), discard) == DISCARDS[0],
        balloon=take(lambda: _balloon(table, given.balloon), 0),
        in_band=take(lambda: _switch(table, "in-band", given.in_band), False),
        statistics_interval=take(lambda: table.count("statistics-interval", given.statistics_interval, most=most), 0),
        guest_memory=take(lambda: table.size("guest-memory", given.guest_memory), 0),
        guest_reserve=take(lambda: table.size("guest-reserve", given.guest_reserve), 0),
    )


def _text(table: Table, key: str) -> str:
    text = table.text(key)
    if not text or "\0" in text:
        raise table.mistake(key, "an empty path" if not text else "a path with a zero byte")
    return text


def _name(table: Table) -> str:
    name = table.text("name", "")
    if name and _NAME.fullmatch(name) is None:
        raise table.mistake("name", f"{name[:80]!r} is not a name of at most 64 letters, digits and . _ : @ -")
    return name


def _queue_numbers(table: Table, given: str | None) -> str | None:
    return table.text("queue-numbers", allowed=CHOICES) if table.has("queue-numbers") else given


def _balloon(table: Table, given: int) -> int:
    size = table.size("balloon", given)
    try:
        balloon_pages(size)
    except UsageError as error:
        raise table.mistake("balloon", error) from error
    return size


def _parsed(table: Table, key: str, parse: Callable[[str], Value]) -> Value | None:
    if not table.has(key):
        return None
    text = table.text(key)
    try:
        return parse(text)
    except UsageError as error:
        raise table.mistake(key, error) from error


def _switch(table: Table, key: str, given: bool) -> bool:
    # As in TOML, or as on a command line.
    if table.is_text(key):
        return _SWITCH[table.text(key, allowed=_SWITCH)]
    return table.flag(key, given)


def _features(table: Table, mistakes: Gathered) -> dict[str, bool]:
    if table.is_text("features"):
        return mistakes.take(lambda: _parsed(table, "features", parse_features), None) or {}
    features = mistakes.take(lambda: table.table("features"), Table({}))
    given = [name for name in FEATURE_NAMES if features.has(name)]
    mistakes.add(*features.unknown())
    return {name: mistakes.take(partial(_switch, features, name, False), False) for name in given}
