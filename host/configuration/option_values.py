"""Values of options about sockets and devices, as they are written on a command line."""

import grp
import re

from host.balloon.balloon_statistics import STATISTICS_INTERVAL_MAX
from protocol.errors import UsageError


def parse_mode(text: str) -> int:
    """Return octal permissions. Raises :class:`UsageError` for anything else, and for more than 0777."""
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise UsageError(f"not three octal digits, such as 660: {text!r}")
    return int(text, 8)


def parse_group(text: str) -> int:
    """Return the id of a group given by name or number. Raises :class:`UsageError` if there is no such group."""
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(f"no group {text!r}") from None


def parse_interval(text: str) -> int:
    """Return whole seconds. Raises :class:`UsageError` for anything else, for more than QEMU allows, and below 0."""
    try:
        seconds = int(text)
    except ValueError:
        raise UsageError(f"not a number of whole seconds: {text!r}") from None
    if not 0 <= seconds <= STATISTICS_INTERVAL_MAX:
        raise UsageError(f"not from 0 to {STATISTICS_INTERVAL_MAX}: {text}")
    return seconds
