"""Runs the real Linux guest of the timeline: daemon, kernel, control socket; and keeps their events."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from guest.linux.init_script import visible_in_guest
from guest.linux.ram_file import RamFile
from host.qmp.qmp_client import QmpClient
from protocol.errors import BalloonError
from protocol.units import MIB, format_size
from scripts.child_processes import Children, python_module
from scripts.laboratory.experiment import Experiment, Outcome, Progress
from scripts.laboratory.timeline import chart, draw, phase_table, rows_of

SAMPLE_SECONDS: Final = 0.02
"""Seconds between two samples of the guest's memory file."""

QUIET_SECONDS: Final = 3.0
"""Seconds without a report after which everything is reported. The kernel starts a pass every 2 s."""

_DEADLINE: Final = 90.0

# The host's file system is read-only in the guest: commands are files, and the guest answers with a line.
_GUEST: Final = """
number=0
while number=$((number + 1)); do
    until [ -e @DIRECTORY@/step$number ]; do sleep 0.02; done
    . @DIRECTORY@/step$number
    echo "done $number"
done
"""


class LinuxRun:
    """A booted guest with its daemon, whose memory is sampled while the script waits."""

    def __init__(self, directory: Path, children: Children, memory: int) -> None:
        self._directory = directory
        self._children = children
        self._number = 0
        self._lines: list[str] = []
        self.events: list[Mapping[str, Any]] = []
        socket_path, control = directory / "balloon.sock", directory / "control"
        options = ["--socket-path", str(socket_path), "--control", str(control), "--events", str(directory / "daemon")]
        options += ["--features", "free-page-hint=on"]
        self._daemon = children.start("vhost-user-balloon", python_module("host", *options), "daemon")
        self._ram: RamFile | None = None
        self._daemon.wait_for_event("listening", _DEADLINE)
        self.control = QmpClient(control)
        script = _GUEST.replace("@DIRECTORY@", visible_in_guest(str(directory)))
        words = ["--socket-path", str(socket_path), "--memory", f"{memory // MIB}M"]
        words += ["--events", str(directory / "guest"), "--", "sh", "-c", script]
        self._guest = children.start("balloon-linux", python_module("guest.linux", *words), "guest")
        booted = self._guest.wait_for_event("booted", _DEADLINE)
        self._ram = RamFile(int(booted["pid"]), memory)

    def close(self) -> None:
        """Close the guest's memory file and the control socket."""
        self.control.close()
        if self._ram is not None:
            self._ram.close()

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self._look()
        self.events.append({"t": time.monotonic(), "event": "phase", "name": name})

    def run(self, script: str) -> None:
        """Run a line of shell in the guest and wait until it has ended."""
        self._number += 1
        path = self._directory / f"step{self._number}"
        path.with_suffix(".new").write_text(script + "\n", encoding="utf-8")
        path.with_suffix(".new").rename(path)
        done = f"done {self._number}"
        self.wait(lambda: done in self._lines, script)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until ``condition`` holds, sampling meanwhile.

        Raises:
            BalloonError: it did not in time, or a process ended.
        """
        end = time.monotonic() + _DEADLINE
        while not condition():
            self._look()
            if (end_of_one := self._children.unexpected_end()) is not None:
                raise BalloonError(end_of_one)
            if time.monotonic() > end:
                raise BalloonError(f"not within {_DEADLINE:.0f} s: {what}")
            time.sleep(SAMPLE_SECONDS)

    def wait_until_quiet(self) -> None:
        """Wait until the guest has nothing more to report."""
        begin = time.monotonic()
        self.wait(lambda: time.monotonic() - self._last("report", begin) > QUIET_SECONDS, "an end of the reports")

    def wait_for_balloon(self, size: int) -> None:
        """Have the balloon take ``size`` bytes, and wait until it has."""
        whole = self.control.command("query-vms")[0]["memory"]
        self.control.command("balloon", value=whole - size)
        self.wait(lambda: bool(self.control.command("query-balloon")["actual"] == whole - size), "the balloon's size")

    def reclaim(self) -> None:
        """Reclaim all free memory, and sample meanwhile."""
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(self.control.command, "reclaim", method="hint")
            self.wait(answer.done, "reclaiming")
            answer.result()

    def idle(self, seconds: float) -> None:
        """Sample for some seconds."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end, "time")

    def _last(self, name: str, begin: float) -> float:
        return max([begin, *(float(event["t"]) for event in self.events if event["event"] == name)])

    def _look(self) -> None:
        now = time.monotonic()
        assert self._ram is not None
        self.events.append({"t": now, "event": "memory", "resident_bytes": self._ram.resident_bytes()})
        # The daemon's "memory" event is the table of regions, not what they cost.
        self.events += [event for event in self._daemon.new_events() if event["event"] != "memory"]
        self._lines += self._guest.output.read()


def _drive(run: LinuxRun, size: int, progress: Progress) -> None:
    fill = f"dd if=/dev/zero of=/tmp/fill bs=1M count={size // MIB} 2>/dev/null"
    amount = format_size(size)

    def phase(name: str) -> None:
        progress(name)
        run.phase(name)

    phase("idle")
    run.idle(1.0)
    phase(f"{amount} filled")
    run.run(fill)
    phase("deleted: reports")
    run.run("rm /tmp/fill")
    run.wait_until_quiet()
    phase("filled again")
    run.run(fill)
    phase(f"deleted, balloon of {amount}")
    run.run("rm /tmp/fill")
    run.wait_for_balloon(size)
    run.idle(1.0)
    phase("balloon emptied")
    run.wait_for_balloon(0)
    run.idle(1.0)
    phase("filled again")
    run.run(fill)
    phase("deleted, reclaim")
    run.run("rm /tmp/fill")
    run.reclaim()
    run.idle(1.0)


def run(quick: bool, progress: Progress) -> Outcome:
    """Boot a guest, run all phases, and return what happened.

    Raises:
        BalloonError: no kernel to be had here, or something did not happen in time.
    """
    memory, size = (256 * MIB, 128 * MIB) if quick else (1024 * MIB, 600 * MIB)
    with tempfile.TemporaryDirectory(prefix="balloon-lab-") as name, Children(Path(name)) as children:
        linux = LinuxRun(Path(name), children, memory)
        with contextlib.closing(linux):
            _drive(linux, size, progress)
            rows = rows_of(linux.events)
    return Outcome(
        tables=(phase_table(rows), chart(rows)),
        notes=(
            f"Linux under User Mode Linux with {format_size(memory)}. Its balloon is as large as its driver says.",
            "Given back is what the daemon discarded. A page that the guest had not touched since counts again, though"
            " the host got nothing for it: so the hints of a reclaim are more than what was just deleted.",
        ),
        rows=rows,
    )


EXPERIMENT: Final = Experiment(
    name="timeline",
    title="one real Linux guest through reports, a balloon in and out, and reclaiming (takes a kernel, and real time)",
    run=run,
    draw=draw,
)
