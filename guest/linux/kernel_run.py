"""One run of a User Mode Linux kernel: start it, carry its streams, watch its memory, remove everything."""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from guest.linux.control_line import ControlMessage, Stage, parse_control_line, parse_features, parse_memory_line
from guest.linux.init_script import command_script, init_script
from guest.linux.kernel_command_line import Consoles, kernel_arguments
from guest.linux.kernel_files import LinuxFiles
from guest.linux.kernel_log import excerpt, kernel_warnings, lost_daemon, out_of_memory, panic_reason, shut_down
from guest.linux.processes import (
    Guard,
    become_subreaper,
    children,
    kill_adopted,
    open_log,
    prepare_kernel_process,
    scratch_parent,
)
from guest.linux.ram_file import RamDirectory, RamFile
from guest.linux.streams import GuestStreams, window_size
from protocol.errors import BalloonError
from protocol.process.events import EventLog
from protocol.units import format_size
from protocol.virtio_balloon import BalloonFeature, feature_bit_names

BOOT_SECONDS = 60.0
"""Time limit in seconds for a kernel to start COMMAND; the usual time is 1.5 s."""

SHUTDOWN_SECONDS = 3.0
"""Seconds for a guest to power off, and for COMMAND to act on a signal, before the kernel is killed."""

SAMPLE_SECONDS = 0.5
ZONES_SECONDS = 1.0
"""Seconds between two looks at the host's side of the memory, and between two questions for the guest's."""

_INTERRUPTS_UNTIL_STOP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that one run needs. ``memory`` in bytes; ``kernel_log`` is where the log stays, if anywhere."""

    files: LinuxFiles
    socket_path: Path
    memory: int
    ram: RamDirectory
    argv: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    kernel_log: Path | None
    parameters: Sequence[str] = ()
    """Added to the kernel's command line."""
    zones: bool = False
    """Whether the guest is asked for the state of its zones."""


class KernelRun:
    """A guest from its first to its last process. Use once: :meth:`run`."""

    def __init__(self, plan: Plan, events: EventLog, progress: Callable[[str], None], notice: Callable[[str], None]):
        """Args:
        plan: what to boot.
        events: where the events go.
        progress: shows a line about the current step; ``""`` clears it.
        notice: prints one line for the user, after the guest is gone.
        """
        self._plan = plan
        self._events = events
        self._progress = progress
        self._notice = notice
        self._streams = GuestStreams()
        self._ram: RamFile | None = None
        self._started = time.monotonic()
        self._deadline: float | None = self._started + BOOT_SECONDS
        self._booted = False
        self._interrupts = 0
        self._stop_signal: int | None = None
        self._status: int | None = None
        self._next_question = self._started
        self._is_asked = False
        self._failure: str | None = None

    def run(self) -> int:
        """Boot, run COMMAND, power off; return COMMAND's exit status, or 128 + n for signal n to this process.

        Raises:
            BalloonError: the kernel log cannot be written, or the kernel did not come up, panicked or had no balloon.
        """
        become_subreaper()
        with contextlib.ExitStack() as stack:
            wake = stack.enter_context(_signals(window=self._streams.terminal))  # first, to cover the cleanup too
            scratch = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="balloon-linux-", dir=scratch_parent(self._plan.environment), ignore_cleanup_errors=True
                    )
                )
            )
            guard = stack.enter_context(Guard(self._plan.files.busybox, scratch))
            others = children(os.getpid())
            log = self._plan.kernel_log or scratch / "kernel.log"
            consoles = stack.enter_context(self._streams)
            self._write_control_root(scratch / "root")
            (scratch / "vhost.sock").symlink_to(self._plan.socket_path.absolute())
            process = self._start(scratch, log, consoles)
            try:
                guard.watch(process.pid)
                stack.callback(self._close_ram)
                self._supervise(process, wake)
            finally:
                self._progress("")
                _kill(process, others)
            self._streams.drain(wake, None if self._stop_signal is None else SHUTDOWN_SECONDS)
            return self._conclude(log.read_text(encoding="utf-8", errors="replace"))

    def _write_control_root(self, root: Path) -> None:
        for directory in (root, root / "dev", root / "host"):
            directory.mkdir()
        shutil.copyfile(self._plan.files.busybox, root / "busybox")
        (root / "busybox").chmod(0o755)
        if self._plan.files.module is not None:
            shutil.copyfile(self._plan.files.module, root / "virtio_balloon.ko")
        script = init_script(
            terminal=self._streams.terminal,
            separate_stderr=self._streams.separate_stderr,
            window=window_size(0),
        )
        (root / "init").write_text(script, encoding="utf-8")
        (root / "init").chmod(0o755)
        command = command_script(self._plan.argv, directory=self._plan.directory, environment=self._plan.environment)
        (root / "command").write_bytes(os.fsencode(command))

    def _start(self, scratch: Path, log: Path, consoles: Consoles) -> subprocess.Popen[bytes]:
        runtime = scratch / "uml"
        runtime.mkdir()
        arguments = kernel_arguments(
            memory=self._plan.memory,
            control_root=str(scratch / "root"),
            runtime=str(runtime),
            socket_path=str(scratch / "vhost.sock"),
            consoles=consoles,
            parameters=self._plan.parameters,
        )
        self._progress(f"booting Linux {self._plan.files.release} with {format_size(self._plan.memory)}")
        descriptor = open_log(log)
        self._started = time.monotonic()
        self._deadline = self._started + BOOT_SECONDS
        try:
            process = subprocess.Popen(
                [str(self._plan.files.kernel), *arguments],
                cwd="/",
                env={"TMPDIR": self._plan.ram.path, "HOME": str(scratch), "PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=self._streams.kernels_ends,
                start_new_session=True,
                preexec_fn=prepare_kernel_process,  # no thread of ours runs yet
            )
        except OSError as error:
            raise BalloonError(f"cannot start {self._plan.files.kernel}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self._streams.started()
        return process

    def _supervise(self, process: subprocess.Popen[bytes], wake: int) -> None:
        """Serve signals, the control line and the memory samples until the kernel process ends or has to be ended."""
        next_sample = self._started
        unread = b""
        with selectors.DefaultSelector() as selector, _pidfd(process.pid) as exited:
            for descriptor in (wake, self._streams.control, exited):
                selector.register(descriptor, selectors.EVENT_READ)
            while self._failure is None:
                until = next_sample if self._deadline is None else min(next_sample, self._deadline)
                ready = {key.fd for key, _ in selector.select(max(0.0, until - time.monotonic()))}
                if wake in ready:
                    for number in os.read(wake, 64):
                        self._take_signal(number)
                if self._streams.control in ready:
                    data = os.read(self._streams.control, 4096)
                    if not data:
                        selector.unregister(self._streams.control)
                    *lines, unread = (unread + data).split(b"\n")
                    for line in lines:
                        self._take_message(parse_control_line(line), process.pid)
                elif exited in ready:
                    return
                now = time.monotonic()
                if now >= next_sample:
                    self._sample(process.pid)
                    next_sample = now + SAMPLE_SECONDS
                    self._ask_for_zones(now)
                if self._deadline is not None and now >= self._deadline:
                    if not self._booted and self._stop_signal is None:
                        self._failure = f"the guest did not come up within {BOOT_SECONDS:.0f} s"
                    return

    def _take_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._streams.resize()
            return
        if number == signal.SIGINT and self._booted:
            self._interrupts += 1
            if self._interrupts < _INTERRUPTS_UNTIL_STOP:
                self._streams.tell("signal INT")
                return
        if self._stop_signal is None:
            self._stop_signal = number
            name = "TERM" if number == signal.SIGINT else signal.Signals(number).name.removeprefix("SIG")
            self._streams.tell(f"signal {name}")
            self._deadline = time.monotonic() + (SHUTDOWN_SECONDS if self._booted else 0)

    def _take_message(self, message: ControlMessage | None, pid: int) -> None:
        match message:
            case ControlMessage(Stage.BALLOON, text):
                device, _, bits = text.partition(" ")
                features = parse_features(bits)
                reporting = bool(features >> BalloonFeature.PAGE_REPORTING & 1)
                names = feature_bit_names(features)
                self._events.emit("balloon", device=device, features=features, feature_names=names, reporting=reporting)
            case ControlMessage(Stage.BOOTED, release) if not self._booted:
                self._booted = True
                self._deadline = None
                self._progress("")
                seconds = round(time.monotonic() - self._started, 3)
                self._events.emit("booted", kernel=release, memory_bytes=self._plan.memory, pid=pid, seconds=seconds)
                self._streams.booted()
            case ControlMessage(Stage.MEMORY, text):
                self._is_asked = False
                self._tell_zones(text)
            case ControlMessage(Stage.STATUS, text) if text.isdecimal():
                self._status = int(text)
                self._deadline = time.monotonic() + SHUTDOWN_SECONDS
            case ControlMessage(Stage.FAILED, text):
                self._failure = f"the guest could not start: {text}"
            case _:
                pass

    def _sample(self, pid: int) -> None:
        if self._ram is None:
            with contextlib.suppress(BalloonError):  # not yet created
                self._ram = RamFile(pid, self._plan.memory)
        if self._ram is not None:
            self._events.emit("memory", memory_bytes=self._plan.memory, resident_bytes=self._ram.resident_bytes())

    def _ask_for_zones(self, now: float) -> None:
        # A guest that is short of memory answers late: one question at a time.
        if self._plan.zones and self._booted and not self._is_asked and now >= self._next_question:
            self._next_question = now + ZONES_SECONDS
            self._is_asked = True
            self._streams.tell("memory")

    def _tell_zones(self, text: str) -> None:
        memory = parse_memory_line(text)
        if memory is None or self._ram is None:
            return
        self._events.emit(
            "zones",
            memory_bytes=self._plan.memory,
            resident_bytes=self._ram.resident_bytes(),
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            page_cache_bytes=memory.page_cache_bytes,
            zones=[asdict(zone) for zone in memory.zones],
        )

    def _close_ram(self) -> None:
        if self._ram is not None:
            self._ram.close()

    def _conclude(self, log: str) -> int:
        """Emit ``finished`` and return the exit status, or raise what went wrong."""
        warnings = kernel_warnings(log)
        problem = self._problem(log)
        if self._stop_signal is not None:
            status, problem = 128 + self._stop_signal, None
        elif problem is not None or self._status is None:
            status = 1
        else:
            status = self._status
        self._events.emit("finished", status=status, kernel_warnings=len(warnings))
        if problem is not None:
            raise BalloonError(problem)
        if warnings:
            where = f", see {self._plan.kernel_log}" if self._plan.kernel_log else " (--kernel-log PATH keeps the log)"
            lost = f"the daemon at {self._plan.socket_path} went away; " if lost_daemon(log) else ""
            self._notice(f"{lost}kernel warnings: {len(warnings)}{where}; the first: {warnings[0]}")
        if status > 128 and (killed := out_of_memory(log)) is not None:
            self._notice(f"the guest used up its {format_size(self._plan.memory)}: {killed}")
        return status

    def _problem(self, log: str) -> str | None:
        if self._failure is not None:
            return f"{self._failure}: {excerpt(log)}"
        if self._status is not None:
            return None
        reason = panic_reason(log)
        if reason is None:
            return f"the kernel ended before the command did: {shut_down(log) or excerpt(log)}"
        if lost_daemon(log):
            return (
                f"the daemon at {self._plan.socket_path} went away while it held free pages of the guest, "
                f"so the guest kernel panicked: {reason}"
            )
        return f"the guest kernel panicked: {reason}"


@contextlib.contextmanager
def _signals(*, window: bool) -> Iterator[int]:
    """Turn signals into bytes of their numbers, read from the descriptor that this yields."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
    if window:
        numbers.append(signal.SIGWINCH)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    if not window:  # a background job may not read its terminal: that is an end of file, not a reason to be stopped
        before[signal.SIGTTIN] = signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    old = signal.set_wakeup_fd(writing)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kill(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """End the kernel and every process it made.

    The whole group at once: the guest's processes are traced by the kernel, and one that outlived it would run on as a
    process of the host.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kill_adopted(others)
