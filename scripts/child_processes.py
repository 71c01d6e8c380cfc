"""The child processes of a script: started, followed by their event files, and ended in every case."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from protocol.errors import BalloonError

Event = Mapping[str, Any]
"""One line of an event stream."""

PACKAGES: Final = Path(__file__).resolve().parent.parent
"""Where ``guest``, ``host`` and ``scripts`` are: the checkout, or the environment they are installed in."""

EVENT_SECONDS: Final = 0.02
"""Seconds between two reads of an event file while an event is waited for."""

STOP_SECONDS: Final = 5.0
"""Seconds that a process has to end after SIGTERM."""


class LineTail:
    """Reads the whole lines that were added to a file since the last read. A file that does not exist yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """Return the new lines, without their line breaks."""
        try:
            if os.stat(self.path).st_size == self._offset:
                return []  # far cheaper than to open it, which a follower would do many times a second
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
    """One process and the files that it writes."""

    name: str
    process: subprocess.Popen[bytes]
    events: LineTail
    output: LineTail
    complaints: Path
    peak_resident_bytes: int | None = None
    """Its peak resident size as the kernel has counted it; None until it has ended."""
    minor_faults: int = 0
    major_faults: int = 0
    """Page faults of its whole life, once it has ended."""
    _cpu_seconds: float = 0.0

    def new_events(self) -> list[Event]:
        """Return the events that it has written since the last call."""
        return [json.loads(line) for line in self.events.read()]

    def wait_for_event(self, name: str, seconds: float = math.inf) -> Event:
        """Return the next event ``name``. Other events, those read together with it included, are dropped.

        Raises:
            BalloonError: the process has ended, or the event was not written within ``seconds``.
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
        """Whether the process has ended (and was reaped)."""
        return self._reaped(os.WNOHANG)

    def kill(self) -> None:
        """End the process at once, and wait until it is over."""
        if not self.ended():
            self.process.kill()
            self._reaped(0)

    def _reaped(self, options: int) -> bool:
        # Popen.wait would discard the resource usage.
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, options)
            if pid != 0:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_resident_bytes = usage.ru_maxrss * 1024
                self.minor_faults, self.major_faults = usage.ru_minflt, usage.ru_majflt
                self._cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.process.returncode is not None

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used so far, all its threads together."""
        if not self.ended():
            # Clock ticks; the name in parentheses may itself hold spaces and parentheses.
            stat = Path(f"/proc/{self.process.pid}/stat").read_text(errors="replace")
            user, system = stat.rpartition(")")[2].split()[11:13]
            self._cpu_seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return self._cpu_seconds

    def how_it_ended(self) -> str:
        """Return one line on an ended process: its status and the last line of its standard error."""
        status = self.process.returncode
        how = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        words = self.complaints.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "no message")
        return f"{self.name} ended ({how}): {last}"


class Children:
    """Processes that live as long as the context: leaving it ends the guests, then the daemon, which is started
    first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def start(self, name: str, argv: Sequence[str], events: str) -> Child:
        """Start a process whose ``--events`` file is ``events`` in the directory.

        Raises:
            BalloonError: it cannot be started.
        """
        stem = self._directory / events
        # Added, not put in the place of a suffix: what is called web.1 and web.2 has files of its own.
        output, complaints = stem.with_name(f"{events}.out"), stem.with_name(f"{events}.err")
        # A session of its own: Ctrl-C reaches the script only, which then ends everything in the right order. If the
        # script is killed by SIGKILL, the kernel sends its children a signal.
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
        """Return one line on a process other than ``allowed`` that has ended, if one has."""
        for child in self._children:
            if child is not allowed and child.ended():
                return child.how_it_ended()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The daemon last: a real kernel that loses its device panics.
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

    The current directory is not searched (``-P``), since it may have a directory called ``host``.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """Return the environment in which :func:`python_module` finds its module."""
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
