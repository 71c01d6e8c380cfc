"""``balloon-check hostile``: hostile sessions beside a good machine."""

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.check.broken.devices import FEATURES
from scripts.check.broken.trying import crash_of
from scripts.check.hostile.daemon_state import DaemonState
from scripts.check.hostile.options import SESSIONS
from scripts.check.hostile.run import Outcome, Period, Run, Stall, open_companions
from scripts.check.hostile.samples import Figures
from scripts.check.hostile.session import Plan, plan_of
from scripts.check.listing import print_listing
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.child_processes import Children, python_module
from scripts.json_output import open_json

MARK_EVERY: Final = 1000
"""Sessions between two lines."""

_START_SECONDS: Final = 20.0
_SHOW_SECONDS: Final = 0.5
_STALLS_SHOWN: Final = 8
_HEADING: Final = (
    f"{'':18}{'good machine, ms':^33}{'control, ms':^24}{'others,':>9}{'daemon, MiB':^27}\n"
    f"{'':18}{'reports':>9}{'median':>8}{'p99':>8}{'longest':>8}{'median':>8}{'p99':>8}{'longest':>8}{'CPUs':>9}"
    f"{'RSS':>9}{'PSS':>9}{'private':>9}{'files':>8}{'threads':>9}"
)


def run(arguments: argparse.Namespace) -> int:
    """Play the sessions. Return the exit status: 0 if the bar holds.

    Raises:
        BalloonError: a process does not start, or the daemon is gone.
        TargetError: nothing listens at the socket, or no balloon does.
    """
    plans = _plans(arguments)
    if arguments.list:
        print_listing(map(str, plans))
        return 0
    _raise_fd_limit()
    with open_json(arguments.json) as stream, tempfile.TemporaryDirectory(prefix="balloon-hostile-") as place:
        say = _Lines(sys.stderr if arguments.json == "-" else sys.stdout)
        with _daemon(arguments.socket_path, Path(place)) as (path, said):
            outcome = _run(path, Path(place), plans, arguments, say)
            if said.exists() and (crash := crash_of(said.read_text(errors="replace"))):
                outcome.faults.append(f"the daemon had an error of its own: {crash}")
        for line in ending(outcome):
            say.line(line)
        if stream is not None:
            json.dump(document(outcome), stream, indent=2)
            stream.write("\n")
    return 1 if outcome.faults else 0


def _raise_fd_limit() -> None:
    # Eight sessions at a time may have hundreds of descriptors each.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _plans(arguments: argparse.Namespace) -> Sequence[Plan]:
    if arguments.only is not None:
        return [plan_of(arguments.seed, arguments.only)] * (arguments.sessions or 1)
    return [plan_of(arguments.seed, number) for number in range(1, (arguments.sessions or SESSIONS) + 1)]


@contextlib.contextmanager
def _daemon(path: Path | None, place: Path) -> Iterator[tuple[Path, Path]]:
    # The socket, and the file of the daemon's standard error.
    if path is not None:
        yield path, place / "none"
        return
    path = place / "balloon.sock"
    events = place / "daemon.events"
    with Children(place) as children:
        options = ("--socket-path", str(path), "--features", FEATURES, "--events", str(events))
        child = children.start("the daemon", python_module("host", *options), events.name)
        child.wait_for_event("listening", _START_SECONDS)
        yield path, child.complaints


class _Lines:
    """Lines for people, and on a terminal one line of progress."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shown = 0.0

    def line(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def progress(self, text: str) -> None:
        """Show where the run is, on a terminal."""
        now = time.monotonic()
        if sys.stderr is not None and sys.stderr.isatty() and now - self._shown >= _SHOW_SECONDS:
            self._shown = now
            print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)


def _run(path: Path, place: Path, plans: Sequence[Plan], arguments: argparse.Namespace, say: _Lines) -> Outcome:
    device = VhostUserDevice(path)
    good, control = open_companions(path, place)
    with good, control:
        run = Run(device, _pid_of(device), arguments.seed, good, control)
        say.line(f"{len(plans)} hostile sessions of seed {arguments.seed}; the daemon is process {run.outcome.pid}")
        say.line(_HEADING)
        run.measure_alone(arguments.alone)
        say.line(_row(run.outcome.periods[-1], run.outcome.states[-1]))
        last = 0
        for played in run.play(plans):
            say.progress(f"{played:,} of {len(plans):,} sessions")
            if played % MARK_EVERY == 0 or played == len(plans):
                say.line(_row(run.mark(f"{last + 1:,}-{played:,}"), run.outcome.states[-1]))
                last = played
        run.finish()
    return run.outcome


def _pid_of(device: VhostUserDevice) -> int:
    with contextlib.closing(device.connect()) as connection:
        return connection.peer_pid


def _row(period: Period, state: DaemonState | None = None) -> str:
    good, control = period.good, period.control
    times = "".join(f"{one * 1000:8.2f}" for one in (*good[1:], *control[1:]))
    return f"{period.name:18}{good.samples:9,}{times}{period.others:9.2f}{'' if state is None else state}"


def ending(outcome: Outcome) -> Iterator[str]:
    """Yield the last lines: the whole, the longest stalls, the verdict."""
    yield _row(outcome.periods[-1])
    for reason, count in outcome.not_brought_up.items():
        yield f"{count} sessions could not be brought up: {reason}"
    for stall in sorted(outcome.stalls, key=lambda stall: -stall.own)[:_STALLS_SHOWN]:
        yield (
            f"a report of {stall.seconds * 1000:.0f} ms at {stall.at:.1f} s: {stall.shared * 1000:.0f} ms the control "
            f"was delayed too, {stall.waited * 1000:.0f} ms there was no processor (all threads together: "
            f"{stall.together * 1000:.0f} ms); open at that time:"
        )
        yield from (f"    {session}" for session in stall.sessions or ("no hostile session",))
    yield from (f"FAIL: {fault}" for fault in outcome.faults)
    if not outcome.faults:
        yield "PASS: the good machine was not held up, and the daemon takes no more than before"


def document(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome for programs. Times are seconds, memory is bytes."""
    return {
        "verdict": "FAIL" if outcome.faults else "PASS",
        "faults": outcome.faults,
        "seed": outcome.seed,
        "periods": [
            {
                "name": one.name,
                "good": _figures(one.good),
                "control": _figures(one.control),
                "other_processors": round(one.others, 3),
            }
            for one in outcome.periods
        ],
        "daemon": [state._asdict() for state in outcome.states],
        "not_brought_up": outcome.not_brought_up,
        "stalls": [_stall(one) for one in outcome.stalls],
    }


def _figures(figures: Figures) -> dict[str, float]:
    return {name: round(value, 6) for name, value in figures._asdict().items()}


def _stall(stall: Stall) -> dict[str, Any]:
    return {**stall._asdict(), "own": stall.own, "sessions": list(stall.sessions)}
