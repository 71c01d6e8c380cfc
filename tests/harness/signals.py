"""The signals that a program has to survive."""

import signal

ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGSTOP}
STOPPING = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def stray_signals(but: set[signal.Signals]) -> list[int]:
    """Return every signal that neither ends nor stops a program on purpose, in order, but some."""
    return sorted(int(number) for number in signal.valid_signals() - ENDING - STOPPING - FAULTS - but)
