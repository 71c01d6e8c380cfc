"""Commands of control clients in a process that serves no virtual machine itself."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from host.control.daemon_status import DaemonStatus

if TYPE_CHECKING:
    from host.control.control_commands import ControlCommands


def commands_of_daemon(version: Mapping[str, Any], status: DaemonStatus) -> "ControlCommands":
    """Return what carries out the commands that concern no machine. Loading it is what the first client waits for, and
    not the start."""
    from host.control.control_commands import ControlCommands

    return ControlCommands({}, time.time, version, status)
