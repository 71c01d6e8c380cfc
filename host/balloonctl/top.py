"""``top``: the machines of all daemons on the terminal, again and again, with keys that act on one."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from host.balloonctl.daemons import Daemons, Machine
from host.balloonctl.table import short_size
from host.balloonctl.top_screen import Action, Row, TopState, rates, screen
from host.qmp.qmp_client import QmpClient
from host.terminal_view.bars import ASCII, UNICODE, Symbols
from host.terminal_view.styled_line import Line
from host.terminal_view.view import View
from protocol.errors import BalloonError, UsageError

NO_COLOURS: Final = "no colours: Textual is not installed (extra `view`: pip install 'vhost-user-balloon[view]')"

Show = Callable[[View, Callable[[], None]], int | None]


class Top:
    """The view of ``daemons``, which a thread asks every ``interval`` seconds. ``message`` is shown at first."""

    def __init__(self, daemons: Daemons, interval: float, symbols: Symbols, message: str = "") -> None:
        self.ended = False
        self._daemons = daemons
        self._interval = interval
        self._symbols = symbols
        self._state = TopState(message=message)
        self._machines: Mapping[str, Machine] = {}
        self._rows: list[Row] = []
        self._asked = 0.0
        self._failure = message
        self._left = threading.Event()

    def begin(self) -> None:
        """Ask, and have it asked again and again."""
        self._ask()
        threading.Thread(target=self._ask_on, daemon=True, name="asking").start()

    def leave(self) -> None:
        """Ask no more."""
        self._left.set()

    def _ask_on(self) -> None:
        while not self._left.wait(self._interval):
            self._ask()

    def _ask(self) -> None:
        self._daemons.failures.clear()
        machines = {machine.label: machine for machine in self._daemons.machines()}
        failure = self._daemons.failures[0] if self._daemons.failures else ""
        if failure or self._state.message == self._failure:
            self._state.message = failure
        self._failure = failure
        now = time.monotonic()
        before = {label: machine.entry for label, machine in self._machines.items()}
        entries = {label: machine.entry for label, machine in machines.items()}
        back = rates(before, entries, now - self._asked)
        self._machines, self._asked = machines, now
        self._rows = [Row(label, entry, back.get(label, 0.0)) for label, entry in entries.items()]

    def lines(self, width: int, height: int) -> Sequence[Line]:
        """Return the screen."""
        return screen(self._rows, self._state, time.strftime("%H:%M:%S"), width, height, self._symbols)

    def press(self, key: str) -> None:
        """Take a key."""
        action = self._state.press(key)
        if action is Action.QUIT:
            self.ended = True
            return
        machine = self._machines.get(self._state.selected)
        if action is not None and machine is not None:
            self._state.message = f"{action.value} {machine.label} ..."
            # A reclaim takes seconds.
            threading.Thread(target=self._act, args=(action, machine), daemon=True).start()

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


def show_top(daemons: Daemons, interval: float) -> int:
    """Show it until ``q`` or Ctrl-C, and return the exit status.

    Raises:
        UsageError: there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") in ("", "dumb"):
        raise UsageError("top needs a terminal; status prints the machines once")
    show, message = _terminal()
    unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    top = Top(daemons, interval, UNICODE if unicode else ASCII, message)
    try:
        show(top, top.begin)
    finally:
        top.leave()
    return 0


def _terminal() -> tuple[Show, str]:
    # What shows a view, and what there is to say of that.
    from host.terminal_view import plain_terminal

    if sys.stderr is None or not sys.stderr.isatty():  # where Textual draws
        return plain_terminal.show, ""
    try:
        from host.terminal_view import terminal_app
    except ImportError:
        return plain_terminal.show, NO_COLOURS
    return terminal_app.show, ""
