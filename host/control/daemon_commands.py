"""Commands of control clients in a process that serves no virtual machine itself."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from host.control.daemon_status import DaemonStatus

if TYPE_CHECKING:
    from host.control.control_commands import ControlCommands


def commands_of_daemon(
    clock: Callable[[], float], version: Mapping[str, Any], status: DaemonStatus
) -> "ControlCommands":
    """Return what carries out the commands that concern no machine. ``clock`` returns the time
    in seconds since the epoch. Loading it is what the first client waits for, and not the start."""
    from host.control.control_commands import ControlCommands

    return ControlCommands({}, clock, version, status)
