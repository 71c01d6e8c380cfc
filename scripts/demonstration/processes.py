"""The demonstration's processes: started, followed by their event files, and ended whatever happens."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.errors import BalloonError
from scripts.demonstration.state import Event

PACKAGES: Final = Path(__file__).resolve().parent.parent.parent
"""Where ``guest``, ``host`` and ``scripts`` are: the checkout, or the environment they are installed in."""

EVENT_SECONDS: Final = 0.02
"""Seconds between two looks for an event that is waited for."""

STOP_SECONDS: Final = 5.0
"""What a process gets to leave by itself after SIGTERM, in seconds."""


class LineTail:
    """Reads the whole lines that a growing file gained since the last look. A file that is not there yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """Return the new lines, without their line breaks."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


@dataclass(slots=True, kw_only=True)
class Child:
    """One process of the demonstration with what it writes."""

    name: str
    process: subprocess.Popen[bytes]
    events: LineTail
    output: LineTail
    complaints: Path
    peak_resident_bytes: int | None = None
    """The most it had resident, by the kernel's own books: known once it has ended."""

    def new_events(self) -> list[Event]:
        """Return the events that it has written since the last call."""
        return [json.loads(line) for line in self.events.read()]

    def wait_for_event(self, name: str, seconds: float = math.inf) -> Event:
        """Return the next event ``name``; those before it are dropped, and those that were read with it.

        Raises:
            BalloonError: the process ended without it, or it did not come within ``seconds``.
        """
        end = time.monotonic() + seconds
        while True:
            for event in self.new_events():
                if event["event"] == name:
                    return event
            if self.ended():
                raise BalloonError(self.how_it_ended())
            if time.monotonic() > end:
                raise BalloonError(f"{self.name}: no event {name}")
            time.sleep(EVENT_SECONDS)

    def ended(self) -> bool:
        """Whether the process is over (and reaped)."""
        return self._reaped(os.WNOHANG)

    def kill(self) -> None:
        """End the process at once, and wait until it is over."""
        if not self.ended():
            self.process.kill()
            self._reaped(0)

    def _reaped(self, options: int) -> bool:
        # As Popen.wait, which throws the books away.
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, options)
            if pid != 0:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_resident_bytes = usage.ru_maxrss * 1024
        return self.process.returncode is not None

    def how_it_ended(self) -> str:
        """Return one line on an ended process: its status and its own last word."""
        status = self.process.returncode
        how = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        words = self.complaints.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "no message")
        return f"{self.name} ended ({how}): {last}"


class Children:
    """All processes of one round. Leaving the context ends them in reverse order and waits for them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def start(self, name: str, argv: Sequence[str], events: str) -> Child:
        """Start a process whose ``--events`` file is ``events`` in the round's directory.

        Raises:
            BalloonError: it cannot be started at all.
        """
        stem = self._directory / events
        output, complaints = stem.with_suffix(".out"), stem.with_suffix(".err")
        # A session of its own: Ctrl-C reaches this script only, which then ends everything in the right order.
        # Should the script be killed the hard way, the kernel tells its children.
        setpriv = shutil.which("setpriv")
        follow = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
        try:
            with output.open("wb") as stdout, complaints.open("wb") as stderr:
                process = subprocess.Popen(
                    [*follow, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=module_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            raise BalloonError(f"cannot start {name}: {error.strerror}") from error
        child = Child(name=name, process=process, events=LineTail(stem), output=LineTail(output), complaints=complaints)
        self._children.append(child)
        return child

    def unexpected_end(self, allowed: Child | None = None) -> str | None:
        """Return one line on a process that is over though it should not be, if there is one."""
        for child in self._children:
            if child is not allowed and child.ended():
                return child.how_it_ended()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The guests all at once, the daemon after them: a real kernel that loses its daemon panics.
        daemon, guests = self._children[:1], self._children[1:]
        for group in (guests, daemon):
            for child in group:
                with contextlib.suppress(ProcessLookupError):
                    child.process.terminate()
            end = time.monotonic() + STOP_SECONDS
            for child in group:
                try:
                    child.process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this project with this interpreter.

    Of this project and no other: a directory called ``host`` where the user stands is not looked at.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """Return the environment in which :func:`python_module` finds its module."""
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
