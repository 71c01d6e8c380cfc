"""The daemon's signals, waited for on a thread of their own: those that stop it, SIGHUP, SIGUSR1 and SIGUSR2.

With dozens of workers in the middle of hostile chains the event loop has a small part of the interpreter, and may need
seconds to notice a signal and to end the sessions. A thread that has little to do gets its turn at once. So it takes
the signal, tells the event loop, and calls ``on_overdue`` if the end takes too long from there.
"""

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that stop the daemon."""

OTHER_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that have the daemon do something: reopen its files, print its status, let go of its guests."""

STOP_DEADLINE: Final = 0.6
"""Seconds from the signal that the sessions together have to end. The process is to be gone within one second, and the
kernel takes a part of it for the process's memory."""

_FINE_SWITCHING: Final = 1e-5
"""The interpreter's switch interval while the daemon stops: what is short gets its turn sooner."""


SIGNALS: Final = (*STOP_SIGNALS, *OTHER_SIGNALS)
"""All that :class:`SignalThread` takes."""


def hold_signals() -> None:
    """Let the daemon's signals wait until it runs, and can remove what it has made by then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class SignalThread:
    """Takes the daemon's signals, which must be blocked on every thread, from :meth:`start` until :meth:`close`.

    ``on_stop`` and ``on_overdue`` are called on the thread: at the first signal that stops the daemon, and
    :data:`STOP_DEADLINE` later. ``others`` has what is called there at another signal, until then.
    """

    def __init__(
        self,
        on_stop: Callable[[], object],
        on_overdue: Callable[[], None],
        others: Mapping[signal.Signals, Callable[[], object]],
    ) -> None:
        self._on_stop = on_stop
        self._on_overdue = on_overdue
        self._others = others
        self._closed = threading.Event()
        self._mask: set[int] = set()
        self._thread = threading.Thread(target=self._wait, daemon=True, name="signals")

    def start(self) -> None:
        """Block the signals on this thread and take them. If no thread can be started they are left to their handlers,
        which run on this thread."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # the limit of threads or of memory
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def close(self) -> None:
        """Take no more signals, and call ``on_overdue`` no more. To be called on the thread that called :meth:`start`,
        which then has the signals blocked that it had blocked before."""
        self._closed.set()
        if self._thread.is_alive() and self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, STOP_SIGNALS[0])
            self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _wait(self) -> None:
        while (number := signal.sigwait(SIGNALS)) not in STOP_SIGNALS:
            if (action := self._others.get(signal.Signals(number))) is not None:
                action()
        if self._closed.is_set():
            return
        sys.setswitchinterval(_FINE_SWITCHING)
        self._on_stop()
        if not self._closed.wait(STOP_DEADLINE):
            self._on_overdue()
