"""Signals that mean nothing to a program and would end it, its sockets left behind."""

import signal
from collections.abc import Iterable
from typing import Final

_FAULTS: Final = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
)
"""Signals of a fault in the program itself."""

_HARMLESS: Final = frozenset(
    (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
)
"""Signals whose default does not end the process."""


def ignore_stray_signals(handled: Iterable[signal.Signals] = ()) -> None:
    """Ignore every signal that would end the process by default, but ``handled``, those of faults, and the two that
    cannot be ignored."""
    kept = {*handled, *_FAULTS, *_HARMLESS, signal.SIGKILL, signal.SIGSTOP}
    for number in signal.valid_signals() - kept:
        signal.signal(number, signal.SIG_IGN)
