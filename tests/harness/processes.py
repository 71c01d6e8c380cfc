"""Real processes for tests: start one, follow its events, inspect it, end it and check how it ended.

Nothing here sleeps to wait: an event is waited for on a condition, a process on its exit, both with a deadline.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tests.harness import forked_processes
from tests.harness.forked_processes import ForkedProcess

ROOT: Final = Path(__file__).resolve().parent.parent.parent

DEADLINE: Final = 20.0
"""Seconds after which what a test waits for counts as missing. Generous: the machine may be busy."""

WORKERS_VARIABLE: Final = "VHOST_USER_BALLOON_WORKERS"
"""Environment variable that has all daemons of the tests serve in so many worker processes."""

WORKERS: Final = os.environ.get(WORKERS_VARIABLE) or "0"
"""In how many they do: a number, or ``vm``."""

Event = dict[str, Any]


class EventFollower:
    """Reads a process's event stream from a pipe as it comes, and lets a test wait for an event."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._arrived = threading.Condition()
        self._events: list[Event] = []
        self._ended = False
        self._next = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._pipe:
            event: Event = json.loads(line)
            with self._arrived:
                self._events.append(event)
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def wait(self, name: str, *, deadline: float = DEADLINE, **fields: object) -> Event:
        """Return the next event ``name`` with these fields after the one returned last, skipping others."""
        end = time.monotonic() + deadline
        with self._arrived:
            while True:
                while self._next < len(self._events):
                    event = self._events[self._next]
                    self._next += 1
                    if _matches(event, name, fields):
                        return event
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    why = "the stream ended" if self._ended else f"nothing for {deadline} s"
                    raise AssertionError(f"no event {name} {fields}: {why}; last ones: {self._events[-12:]}")
                self._arrived.wait(left)

    def wait_for_count(self, name: str, count: int, *, deadline: float = DEADLINE, **fields: object) -> list[Event]:
        """Wait until there are ``count`` events ``name`` with these fields in all; return them."""
        end = time.monotonic() + deadline
        with self._arrived:
            while len(found := self._select(name, fields)) < count:
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"{len(found)} instead of {count} events {name} {fields}")
                self._arrived.wait(left)
            return found

    def all(self, name: str | None = None, **fields: object) -> list[Event]:
        """Return every event so far, or those called ``name`` with these fields."""
        with self._arrived:
            return self._select(name, fields)

    def _select(self, name: str | None, fields: Mapping[str, object]) -> list[Event]:
        return [event for event in self._events if name is None or _matches(event, name, fields)]

    def close(self) -> None:
        """Read to the end of the stream, which the process's end brings about."""
        self._reader.join(DEADLINE)
        assert not self._reader.is_alive()
        self._pipe.close()


def _matches(event: Event, name: str, fields: Mapping[str, object]) -> bool:
    return bool(event["event"] == name) and all(event.get(key) == value for key, value in fields.items())


class ProgramProcess:
    """One of the project's programs as a process, its events followed, its standard error kept.

    As a context manager it ends the process with SIGTERM and checks that it left cleanly.
    """

    def __init__(
        self,
        module: str,
        *options: str,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """Start ``module`` with ``options``; ``command`` are words that come before them."""
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115  (open for the life of the object)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        reading, writing = os.pipe()
        words = [*command, "--events", f"/dev/fd/{writing}", *options]
        with open(os.devnull, "rb") as nothing:
            given = nothing.fileno() if stdin is None else stdin
            everything = {**os.environ, **(environment or {})}
            self.process = self._start(module, words, everything, given, [writing, *pass_fds])
        os.close(writing)
        self.events = EventFollower(os.fdopen(reading, "rb"))

    def _start(
        self, module: str, words: Sequence[str], environment: Mapping[str, str], stdin: int, pass_fds: Sequence[int]
    ) -> ForkedProcess | subprocess.Popen[bytes]:
        stdout, stderr = self._stdout.fileno(), self._stderr.fileno()
        if forked_processes.is_loaded(module):
            fds = {0: stdin, 1: stdout, 2: stderr, **{fd: fd for fd in pass_fds}}
            return ForkedProcess(module, words, environment, fds)
        command = [sys.executable, "-m", module, *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def stdout(self) -> str:
        """Return what the process has written to its standard output so far."""
        return _read_all(self._stdout)

    def stderr(self) -> str:
        """Return what the process has written to its standard error so far."""
        return _read_all(self._stderr)

    def forget_stderr(self) -> None:
        """Take what is on standard error so far as expected; more of it is a failure at the end."""
        os.ftruncate(self._stderr.fileno(), 0)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for the process to end, take its last events, return its exit status (negative: the signal)."""
        status = self.process.wait(deadline)
        self.events.close()
        return status

    def stop(self) -> int:
        """Ask the process to leave (SIGTERM) and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill the process and release what belongs to it. Not for use in a ``with`` block."""
        self.process.kill()
        self.wait()
        self._stdout.close()
        self._stderr.close()

    def __enter__(self) -> "ProgramProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
                try:
                    self.process.wait(DEADLINE)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
            self.events.close()
            if kind is None:
                assert self.stderr() == ""
                assert self.process.returncode == 0, f"exit status {self.process.returncode}"
            elif self.stderr():
                print(self.stderr(), file=sys.stderr)
        finally:
            self._stdout.close()
            self._stderr.close()


def _read_all(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


class DaemonProcess(ProgramProcess):
    """The host daemon, listening on a socket of its own in ``directory``."""

    def __init__(self, directory: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.socket_path = directory / "balloon.sock"
        if WORKERS != "0" and "--workers" not in options:
            options = ("--workers", WORKERS, *options)
        super().__init__("host", "--socket-path", str(self.socket_path), *options, environment=environment)
        try:
            self.events.wait("listening")
        except AssertionError:
            complaint = self.stderr()
            self.kill()
            raise AssertionError(f"the daemon did not start: {complaint}") from None

    def __enter__(self) -> Self:
        return self

    def workers(self) -> dict[int, str]:
        """Return the title of each worker process by its number."""
        return workers_of(self.pid)

    def children(self) -> dict[int, str]:
        """Return the title of each child by its number."""
        return children_of(self.pid)

    @property
    def serving_pid(self) -> int:
        """The process that serves the machines, of a daemon with at most one worker."""
        return next(iter(self.workers()), self.pid)

    def serving(self, vm: int) -> int:
        """Return the process that serves a machine, once its title says so."""
        if not self.workers():
            return self.pid
        found: list[int] = []

        def looked_up() -> bool:
            found[:] = [pid for pid, title in self.workers().items() if vm in machines_in(title)]
            return bool(found)

        until(looked_up, f"a worker that serves vm {vm}")
        return found[0]

    def stall(self) -> None:
        """Stop all processes of the daemon (SIGSTOP)."""
        for pid in (self.pid, *self.children()):
            stall(pid)

    def resume(self) -> None:
        """Have them go on (SIGCONT)."""
        for pid in (*self.children(), self.pid):
            os.kill(pid, signal.SIGCONT)

    def settled(self, vm: int) -> Event:
        """Return the ``disconnected`` event of ``vm``, which comes after everything of it was released."""
        return self.events.wait_for_count("disconnected", 1, vm=vm)[0]


@contextlib.contextmanager
def doomed_daemon(directory: Path, *options: str) -> Iterator[DaemonProcess]:
    """A daemon that is killed at the end of the block."""
    daemon = DaemonProcess(directory, *options)
    try:
        yield daemon
    finally:
        daemon.kill()


def children_of(pid: int) -> dict[int, str]:
    """Return the title of each child of a process by its number."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    titles = {}
    for child in children:
        with contextlib.suppress(OSError):
            titles[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode()
    return titles


def workers_of(pid: int) -> dict[int, str]:
    """Return the title of each worker process of a supervisor by its number."""
    return {child: title for child, title in children_of(pid).items() if "worker" in title}


def machines_in(title: str) -> list[int]:
    """Return the numbers of the machines that the title of a worker names."""
    return [int(word) for word in title.partition("(vm ")[2].rstrip(")").split(", ") if word.isdigit()]


def process_state(directory: Path) -> str:
    """Return the state of a process or a thread, by its directory in /proc, as one letter (proc(5))."""
    return (directory / "stat").read_text(encoding="ascii").rpartition(") ")[2][0]


def stall(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: process_state(Path(f"/proc/{pid}")) == "T", "the process stands still")


def processes_with(word: str) -> dict[int, str]:
    """Return the command lines of all processes that mention ``word``, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command:
            found[int(path.parent.name)] = command
    return found


def open_fds(pid: int) -> dict[int, str]:
    """Return what every open file descriptor of a process refers to, by number."""
    found: dict[int, str] = {}
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


def forbid_more_descriptors(pid: int, but: int = 0) -> tuple[int, int]:
    """Set a process's limit to the lowest number that is free, or ``but`` numbers more; return the limits it had."""
    free = sorted(set(range(1 << 16)) - open_fds(pid).keys())
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[but], hard))


def mappings_of_files(pid: int) -> list[str]:
    """Return the shared file mappings of a process, as lines of /proc/PID/maps: a ring's are among them.

    One that the kernel has made for asynchronous requests, with which event descriptors are signalled, is not.
    """
    text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.split()[1][3] == "s" and "/[aio]" not in line]


def resident_bytes(pid: int) -> int:
    """Return the resident set size of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def until(condition: Callable[[], bool], what: str, *, deadline: float = DEADLINE) -> None:
    """Wait until ``condition`` holds, a state of another process that cannot be waited for on a descriptor."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.002)


@contextlib.contextmanager
def unchanged_fds(pid: int) -> Iterator[None]:
    """Check that a process has the same open file descriptors, number by number, after the block as before it."""
    before = open_fds(pid)
    yield
    until(lambda: open_fds(pid) == before, f"file descriptors as before: {before}, now {open_fds(pid)}")
