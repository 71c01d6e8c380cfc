"""The live view on a terminal: a pseudo-terminal of 80 by 24, and the command as a person starts it."""

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.policy.observation import Observation
from host.policy.policy import Decision
from scripts.child_processes import module_environment
from scripts.scenario.run_record import VmState
from scripts.scenario.scenario_file import parse_scenario
from scripts.scenario.score import score_of
from scripts.scenario.view import run_clock, watched_run
from scripts.scenario.view.live_view import LiveView
from scripts.scenario.virtual.fleet import Fleet
from tests.harness.processes import DEADLINE

SCENARIO = """
title = "A long one"
duration = "1000s"
[host]
memory = "100M"
[[vm]]
name = "lonely"
memory = "64M"
workloads = ["memhog:size=32M,hold=1"]
"""

LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"


class Terminal:
    """A command on a terminal of its own; ``output`` is all that it has written."""

    def __init__(self, *command: str) -> None:
        self.ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.output = b""
        self.process = subprocess.Popen(
            command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**module_environment(), "TERM": "xterm-256color"},
        )

    def read_until(self, text: bytes) -> None:
        """Read until ``text`` was written."""
        end = time.monotonic() + DEADLINE
        while text not in self.output:
            assert time.monotonic() < end, f"no {text!r} in {self.output!r}"
            self._read(0.1)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        self.output += os.read(self.ours, 1 << 16)
        return True

    def press(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self.ours, keys)

    def status(self) -> int:
        """Wait for the end of the command; return its exit status."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.output!r}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    pytest.importorskip("textual", reason="Textual is not installed (extra `view`)")
    file = tmp_path / "long.toml"
    file.write_text(SCENARIO)
    command = (sys.executable, "-P", "-m", "scripts.laboratory", "run", str(file), "--virtual")
    with contextlib.closing(Terminal(*command, "--out", str(tmp_path / "out"))) as opened:
        yield opened


@pytest.mark.parametrize(("end", "status"), [(b"\x03", 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_each_end_leaves_the_terminal_as_it_was_and_results(
    terminal: Terminal, tmp_path: Path, end: bytes | signal.Signals, status: int
) -> None:
    terminal.read_until(b"lonely")
    if isinstance(end, bytes):
        terminal.press(b" .")
        terminal.read_until(b"PAUSED")
        terminal.press(end)
    else:
        terminal.process.send_signal(end)
    assert terminal.status() == status
    _, left, table = terminal.output.rpartition(LEAVE_ALTERNATE_SCREEN)
    assert left
    assert b"A long one: reporting, seed 0" in table
    assert terminal.output.rfind(SHOW_CURSOR) > 0
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["interrupted"]


@pytest.mark.parametrize("key", ["q", "down"])
def test_a_policy_that_never_returns_keeps_no_view_and_no_record(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_app = pytest.importorskip("host.terminal_view.terminal_app", reason="needs Textual (extra `view`)")
    entered, answer = threading.Event(), threading.Event()

    class Stuck:
        name, interval = "stuck", 1.0

        def decide(self, seen: Observation) -> Decision:
            if seen.now >= 2:
                entered.set()
                answer.wait(DEADLINE)
            return Decision((), "nothing")

    def show(view: LiveView, begin: Callable[[], None]) -> None:
        begin()
        assert entered.wait(DEADLINE)
        view.press(key)
        while key == "q" and not view.ended:  # another key: the view ends by itself, as after a fault of the terminal
            time.sleep(0.01)

    monkeypatch.setattr(terminal_app, "show", show)
    monkeypatch.setattr(run_clock, "LEAVE_SECONDS", 0.05)
    scenario = parse_scenario(SCENARIO, "long", Path())
    fleet = Fleet(scenario, Stuck())
    record, _ = watched_run.watch(
        scenario,
        lambda watcher: fleet.run(watch=watcher),
        run_clock.NO_LIMIT,
        lambda: fleet.record if fleet.give_up() else None,
    )
    assert (record.interrupted, record.seconds, record.outcomes["lonely"].state) == (True, 2.0, VmState.FINISHED)
    assert score_of(record).faulty_decisions == 1
    before = len(record.events), len(record.decisions)
    answer.set()
    (thread,) = [other for other in threading.enumerate() if other.name == "run"]
    thread.join(DEADLINE)
    assert (len(record.events), len(record.decisions)) == before


def test_output_that_is_captured_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not watched_run.is_terminal()
