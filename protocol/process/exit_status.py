"""How a child process has ended, in words."""

import os
import signal


def how_ended(status: int) -> str:
    """Return how a process has ended whose status :func:`os.waitpid` has returned: ``exit status 3``, ``SIGKILL``."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else signal_name(-code)


def signal_name(number: int) -> str:
    """Return the name of a signal. Real-time signals have none but ``SIGRTMIN`` and ``SIGRTMAX``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"
