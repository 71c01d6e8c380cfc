"""``balloon-check fuzz``: run fuzz targets on mutated inputs, or one target on one input."""

import argparse
import hashlib
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from protocol.errors import BalloonError, UsageError
from scripts.check.fuzzing.corpus import CORPUS, read_inputs
from scripts.check.fuzzing.coverage import run_guided
from scripts.check.fuzzing.mutation import Crash, Mutator, find_crash, shrunk
from scripts.check.fuzzing.options import NAMES, RUNS
from scripts.check.fuzzing.targets import TARGETS, Target
from scripts.check.listing import print_listing
from scripts.check.names import nearest

HANG_SECONDS: Final = 20
"""Processor time between two looks at the clock after which an input hangs. One takes milliseconds at most."""

_LOOK_EVERY: Final = 64
_SHOW_SECONDS: Final = 0.5


class Hang(Exception):
    """An input takes too long."""


def run(arguments: argparse.Namespace) -> int:
    """Fuzz the targets, or run one input. Return the exit status.

    Raises:
        BalloonError: a fault was found; the input is in a file by then.
    """
    for name in arguments.targets:
        if name not in NAMES:
            raise UsageError(f"no target is called {name!r}{nearest([name], NAMES)} (see --list)")
    names = list(dict.fromkeys(arguments.targets)) or list(NAMES)
    if arguments.list:
        print_listing(f"{name}\n    {says(TARGETS[name])}" for name in names)
        return 0
    if len(names) != 1 and (arguments.corpus is not None or arguments.input is not None):
        raise UsageError("--corpus and --input need one target")
    if not arguments.save.is_dir():
        raise UsageError(f"--save {arguments.save} is not a directory")
    if arguments.input is not None:
        return run_input(names[0], arguments.input)
    limit = arguments.runs or (None if arguments.seconds else RUNS)
    if arguments.coverage:
        for name in names:
            run_guided(name, limit, arguments.seconds, arguments.seed, arguments.corpus, arguments.save)
        return 0
    found = [
        name
        for name in names
        if not _fuzz(name, limit, arguments.seconds, arguments.seed, arguments.corpus, arguments.save)
    ]
    if found:
        raise BalloonError(f"a fault was found: {', '.join(found)}")
    return 0


def says(target: Target) -> str:
    """Return what a target holds to: the first sentence of its docstring, on one line."""
    assert target.__doc__ is not None
    return " ".join(target.__doc__.split("\n\n")[0].split())


def run_input(name: str, path: Path) -> int:
    """Run target ``name`` on the file at ``path``. Return 0 if it finds no fault.

    Raises:
        UsageError: the file cannot be read.
        BalloonError: it finds a fault; the traceback is printed by then.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--input {path}: {error.strerror}") from error
    try:
        with hangs_as_exceptions():
            TARGETS[name](data)
    except Exception as error:
        traceback.print_exception(error)
        raise BalloonError(f"{name}: {path} ({len(data)} bytes) finds a fault") from error
    print(f"{name}: {path} ({len(data)} bytes) finds no fault")
    return 0


@contextmanager
def hangs_as_exceptions() -> Iterator[None]:
    """Raise :class:`Hang` when the timer, which is set here and may be set again, has run out. Main thread only."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {HANG_SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _fuzz(name: str, runs: int | None, seconds: float | None, seed: int, corpus: Path | None, save: Path) -> bool:
    # Returns whether no fault was found.
    target = TARGETS[name]
    inputs = Mutator(seed, read_inputs(CORPUS / name if corpus is None else corpus))
    begin = shown = time.monotonic()
    on_terminal = sys.stderr.isatty()

    done = 0

    def goes_on(count: int) -> bool:
        nonlocal shown, done
        done = count
        if count == runs:
            return False
        if count % _LOOK_EVERY:
            return True
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
        now = time.monotonic()
        if on_terminal and now - shown >= _SHOW_SECONDS:
            shown = now
            print(f"\r\x1b[K{_line(name, count, now - begin)}", end="", file=sys.stderr, flush=True)
        return seconds is None or now - begin < seconds

    try:
        with hangs_as_exceptions():
            count, crash = find_crash(target, iter(inputs), goes_on)
    except BaseException:  # a signal: what was done until then found no fault
        print(_line(name, done, time.monotonic() - begin), flush=True)
        raise
    if on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(_line(name, count, time.monotonic() - begin), flush=True)
    if crash is None:
        return True
    _tell(name, target, crash, seed, save)
    return False


def _line(name: str, runs: int, seconds: float) -> str:
    return f"{name:<16}{runs:>12,} inputs {seconds:>9.1f} s {runs / max(seconds, 1e-9):>10,.0f} a second"


def _tell(name: str, target: Target, crash: Crash, seed: int, save: Path) -> None:
    if not isinstance(crash.error, Hang):
        crash = shrunk(target, crash)
    path = save / f"fuzz-{name}-{hashlib.sha256(crash.data).hexdigest()[:8]}.bin"
    path.write_bytes(crash.data)
    error = " ".join(str(crash.error).split())
    print(f"    input {crash.run:,} of seed {seed}: {type(crash.error).__name__}: {error}")
    print(f"    repeat it: balloon-check fuzz {name} --input {path}", flush=True)
