"""Signals that end a script in order: what it started is ended and removed first."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopSignal:
    """The signal that came, 0 before one has."""

    number: int = 0


@contextmanager
def signals_as_interrupts() -> Iterator[StopSignal]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does.

    A SIGHUP that is ignored stays ignored: ``nohup`` asks for that.
    """
    stop = StopSignal()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        raise KeyboardInterrupt

    with _handling([signal.SIGTERM], interrupt):
        yield stop


@contextmanager
def signals_as_exceptions() -> Iterator[StopSignal]:
    """Let SIGINT, SIGTERM and SIGHUP unwind the stack by SystemExit, with 128 plus the signal's number.

    A SIGHUP that is ignored stays ignored: ``nohup`` asks for that.
    """
    stop = StopSignal()

    def leave(number: int, _frame: FrameType | None) -> None:
        # A second signal must not interrupt the cleaning up.
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        stop.number = number
        sys.exit(128 + number)

    with _handling([signal.SIGINT, signal.SIGTERM], leave):
        yield stop


@contextmanager
def _handling(numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # SIGHUP beside these, unless it is ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
