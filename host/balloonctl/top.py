"""``top``: the machines of all daemons on the terminal, again and again, with keys that act on one."""

import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from host.balloonctl.daemons import Daemons, Machine
from host.balloonctl.table import short_size
from host.balloonctl.top_screen import Action, Row, TopState, rates, screen
from host.qmp.qmp_client import QmpClient
from protocol.errors import BalloonError, UsageError

_ESCAPES: Final = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down"}
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"


class Top:
    """The view of ``daemons``, drawn every ``interval`` seconds."""

    def __init__(self, daemons: Daemons, interval: float) -> None:
        self._daemons = daemons
        self._interval = interval
        self._state = TopState()
        self._machines: dict[str, Machine] = {}
        self._rates: dict[str, float] = {}
        self._asked = 0.0

    def run(self) -> int:
        """Show it until ``q`` or Ctrl-C, and return the exit status."""
        with _raw_terminal():
            while True:
                self._ask()
                self._draw()
                until = time.monotonic() + self._interval
                while (left := until - time.monotonic()) > 0:
                    for key in _keys(left):
                        if self._take(key):
                            return 0
                        self._draw()

    def _ask(self) -> None:
        self._daemons.failures.clear()
        machines = {machine.label: machine for machine in self._daemons.machines()}
        if self._daemons.failures:
            self._state.message = self._daemons.failures[0]
        now = time.monotonic()
        before = {label: machine.entry for label, machine in self._machines.items()}
        entries = {label: machine.entry for label, machine in machines.items()}
        self._rates = rates(before, entries, now - self._asked)
        self._machines, self._asked = machines, now

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size()
        rows = [Row(label, each.entry, self._rates.get(label, 0.0)) for label, each in self._machines.items()]
        lines = screen(rows, self._state, time.strftime("%H:%M:%S"), width, height)
        text = "\r\n".join(
            f"\x1b[7m{line.ljust(width)}\x1b[0m" if inverted else f"{line}\x1b[K" for line, inverted in lines
        )
        sys.stdout.write(f"\x1b[H{text}\x1b[J")
        sys.stdout.flush()

    def _take(self, key: str) -> bool:
        # Returns whether this is the end.
        action = self._state.press(key)
        if action is Action.QUIT:
            return True
        machine = self._machines.get(self._state.selected)
        if action is not None and machine is not None:
            self._state.message = f"{action.value} {machine.label} ..."
            # A reclaim takes seconds.
            threading.Thread(target=self._act, args=(action, machine), daemon=True).start()
        return False

    def _act(self, action: Action, machine: Machine) -> None:
        done = f"{action.value} {machine.label}: done"
        try:
            with QmpClient(machine.daemon.path, answer_seconds=None) as client:
                answer = client.command(action.value, vm=machine.number)
            if action is Action.RECLAIM:
                done = f"reclaim {machine.label}: {short_size(answer['discarded-bytes'])} discarded"
        except BalloonError as error:
            done = f"{machine.label}: {error}"
        self._state.message = done


@contextmanager
def _raw_terminal() -> Iterator[None]:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; status prints the machines once")
    before = termios.tcgetattr(sys.stdin)
    # By an exception, so that the terminal is restored.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _keys(seconds: float) -> list[str]:
    # The keys that are pressed within so many seconds, as soon as there are any.
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return []
    data = os.read(sys.stdin.fileno(), 64)
    if not data:
        return ["q"]  # the terminal has gone
    return [_ESCAPES[data]] if data in _ESCAPES else list(data.decode(errors="replace"))
