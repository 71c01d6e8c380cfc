"""The messages of sd_notify(3), and the variables by which a service manager hands over descriptors.

A message is one datagram to the socket that ``NOTIFY_SOCKET`` names: lines ``NAME=value``, with descriptors if it says
``FDSTORE=1``. What a manager hands over begins at descriptor 3 (sd_listen_fds(3)): ``LISTEN_FDS`` says how many,
``LISTEN_FDNAMES`` has their names, ``LISTEN_PID`` the process that they are for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protocol.errors import BalloonError

LISTEN_FDS_START: Final = 3
"""The first descriptor that is handed over."""

NOTIFICATION_MAX: Final = 4096
"""Bytes of a message that are read, as in systemd (manager.c, NOTIFY_BUFFER_MAX)."""

UNNAMED: Final = "unknown"
"""The name of descriptors that came without one."""

READY: Final = {"READY": "1"}
STOPPING: Final = {"STOPPING": "1"}

_FIELD_NAME: Final = re.compile("[A-Z][A-Z0-9_]*")
_FD_NAME_MAX: Final = 255


def build_notification(fields: Mapping[str, str]) -> bytes:
    """Return the message that has these fields, whose values are one line each."""
    return "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in fields.items()).encode()


def parse_notification(data: bytes) -> dict[str, str]:
    """Return the fields of a message.

    Raises:
        BalloonError: a line is not ``NAME=value``, or the message is too long.
    """
    if len(data) > NOTIFICATION_MAX:
        raise BalloonError(f"a notification of more than {NOTIFICATION_MAX} bytes")
    fields = {}
    for line in filter(None, data.decode(errors="replace").splitlines()):
        name, equals, value = line.partition("=")
        if not equals or not _FIELD_NAME.fullmatch(name):
            raise BalloonError(f"a notification with the line {line!r:.60}")
        fields[name] = value
    return fields


def reloading(now_microseconds: int) -> dict[str, str]:
    """Return the fields that say that the service reloads what it was configured with, since CLOCK_MONOTONIC ``now``.
    :data:`READY` says that it has done so."""
    return {"RELOADING": "1", "MONOTONIC_USEC": str(now_microseconds)}


def main_process(pid: int) -> dict[str, str]:
    """Return the fields that say which process the service's main process is."""
    return {"MAINPID": str(pid)}


def status(text: str) -> dict[str, str]:
    """Return the fields that describe the service's state for people."""
    return {"STATUS": text}


def store(name: str) -> dict[str, str]:
    """Return the fields that have the manager keep the descriptor that comes along. It does not watch it: the manager
    would forget a connection whose other end was closed."""
    return {"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}


def remove(name: str) -> dict[str, str]:
    """Return the fields that have the manager close what it keeps by this name."""
    return {"FDSTOREREMOVE": "1", "FDNAME": name}


def is_fd_name(name: str) -> bool:
    """Return whether descriptors may have this name: ASCII without control characters and colons."""
    return 0 < len(name) <= _FD_NAME_MAX and name.isascii() and name.isprintable() and ":" not in name


def handed_over(environment: Mapping[str, str], pid: int) -> list[str]:
    """Return the names of the descriptors that process ``pid`` was handed over, the first of which is
    :data:`LISTEN_FDS_START`. They are none if the variables are for another process.

    Raises:
        BalloonError: the variables contradict each other, or are not numbers.
    """
    count, of = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
    if not count or of != str(pid):
        return []
    if not re.fullmatch("[0-9]{1,7}", count):
        raise BalloonError(f"LISTEN_FDS is not a number: {count!r:.20}")
    names = environment["LISTEN_FDNAMES"].split(":") if environment.get("LISTEN_FDNAMES") else []
    if not names:
        return [UNNAMED] * int(count)
    if len(names) != int(count):
        raise BalloonError(f"LISTEN_FDS says {count} descriptors, LISTEN_FDNAMES has {len(names)} names")
    return names


def handing_over(names: Sequence[str], pid: int) -> dict[str, str]:
    """Return the variables that hand over descriptors of these names to process ``pid``."""
    if not names:
        return {}
    return {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names), "LISTEN_PID": str(pid)}


def without_handing_over(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without these variables."""
    unset: Iterable[str] = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID")
    return {name: value for name, value in environment.items() if name not in unset}
