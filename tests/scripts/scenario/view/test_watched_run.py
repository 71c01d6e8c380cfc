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
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.child_processes import module_environment
from scripts.scenario.view import watched_run
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


def test_output_that_is_captured_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not watched_run.is_terminal()
