"""balloon-linux with the real kernel: streams, exit status, signals, a terminal, and what is left after a run."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest.linux.init_script import visible_in_guest
from guest.linux.streams import set_window_size
from protocol.units import MIB
from tests.harness.processes import ROOT, DaemonProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

LIMIT = 90
"""Seconds for a boot and a short command; ordinary is 2.5 s."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


class Launcher:
    """Runs balloon-linux with a scratch directory of its own and checks that nothing is left of a run."""

    def __init__(self, socket_path: Path, directory: Path) -> None:
        self.directory = directory
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        # A socket address has room for 107 bytes, and the kernel binds one below this directory.
        self.environment = {**os.environ, "TMPDIR": str(self.scratch)}
        self.log = directory / "kernel.log"
        self._options = ["--socket-path", str(socket_path), "--memory", "256M", "--kernel-log", str(self.log)]
        self._options += ["--events", str(directory / "events")]

    def words(self, *command: str) -> list[str]:
        return [sys.executable, "-m", "guest.linux", *self._options, "--", *command]

    def run(self, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        result = subprocess.run(
            self.words(*command),
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            env=self.environment,
            timeout=LIMIT,
            check=False,
        )
        self.check_nothing_left()
        return result

    @contextlib.contextmanager
    def start(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            self.words(*command),
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with process:
                yield process
        finally:
            if process.poll() is None:
                process.kill()
        self.check_nothing_left()

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / "events"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def wait_for(self, name: str) -> dict[str, Any]:
        until(lambda: bool(self.events(name)), f"event {name}", deadline=LIMIT)
        return self.events(name)[-1]

    def processes(self) -> list[bytes]:
        """Return the command lines of all processes that this launcher's kernel made: they name its directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if f"rootflags={self.scratch}".encode() in line:
                    found.append(line)
        return found

    def check_nothing_left(self) -> None:
        until(lambda: self.processes() == [], "no process of the kernel")
        assert list(self.scratch.iterdir()) == []


@pytest.fixture
def launcher(daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return Launcher(daemon.socket_path, tmp_path_factory.mktemp("l"))


def test_command_has_its_streams_status_and_a_read_only_host(launcher: Launcher) -> None:
    script = f"""
        echo to standard output
        echo to standard error >&2
        [ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo no terminal
        uname -r; pwd; id -u
        (: >/var/tmp/balloon-linux-was-here) 2>/dev/null || echo read-only
        echo x >/tmp/file && cat /tmp/file
        [ -d /run/host{launcher.scratch} ] && echo seen
        for word; do printf '[%s]' "$word"; done
        exit 7
    """
    result = launcher.run("sh", "-c", script, "sh", "a b", "it's", "new\nline", "$HOME")
    booted = launcher.wait_for("booted")
    where = visible_in_guest(str(ROOT))
    expected = ["to standard output", "no terminal", booted["kernel"], where, "0", "read-only", "x", "seen"]
    assert result.stdout.decode() == "\n".join(expected) + "\n[a b][it's][new\nline][$HOME]"
    assert result.stderr == b"to standard error\n"
    assert result.returncode == 7
    assert booted["memory_bytes"] == 256 * MIB
    assert launcher.wait_for("balloon")["reporting"] is True
    assert all(0 < event["resident_bytes"] < 256 * MIB for event in launcher.events("memory"))
    assert launcher.wait_for("finished") | {"t": 0, "time": ""} == {
        "t": 0,
        "time": "",
        "event": "finished",
        "status": 7,
        "kernel_warnings": 0,
    }
    assert "Free page reporting enabled" in launcher.log.read_text()
    assert not Path("/var/tmp/balloon-linux-was-here").exists()


def test_bytes_of_any_value_pass_in_and_out(launcher: Launcher) -> None:
    data = bytes(range(256)) * 2048
    result = launcher.run("cat", stdin=data)
    assert result.returncode == 0
    assert result.stdout == data


def test_reader_that_left_ends_the_command(launcher: Launcher) -> None:
    with launcher.start("yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE


def test_process_left_by_the_command_does_not_delay_the_end(launcher: Launcher) -> None:
    result = launcher.run("sh", "-c", "sleep 1000 & kill -KILL $$")
    assert result.returncode == 128 + signal.SIGKILL
    assert result.stderr == b""


def test_interrupt_reaches_the_command(launcher: Launcher) -> None:
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    with launcher.start("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"interrupted\n"
        assert process.wait(LIMIT) == 5


def test_termination_shuts_the_guest_down(launcher: Launcher) -> None:
    with launcher.start("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_booting_leaves_nothing(launcher: Launcher, number: signal.Signals) -> None:
    with launcher.start("true") as process:
        until(lambda: bool(launcher.processes()), "the kernel process")
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number


def test_launcher_that_is_killed_takes_the_kernel_with_it(launcher: Launcher) -> None:
    with launcher.start("sleep", "1000") as process:
        launcher.wait_for("booted")
        assert launcher.processes() != []
        process.kill()
        process.wait(LIMIT)
        until(lambda: list(launcher.scratch.iterdir()) == [], "no files")


def test_panic_is_one_line_and_leaves_nothing(launcher: Launcher) -> None:
    result = launcher.run("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")
    assert result.returncode == 1
    assert result.stderr == b"balloon-linux: the guest kernel panicked: sysrq triggered crash\n"
    assert launcher.wait_for("finished")["kernel_warnings"] > 0


def test_guest_that_reboots_ends_and_its_command_does_not_run_twice(launcher: Launcher) -> None:
    with launcher.start("sh", "-c", "echo once; read line; echo b >/proc/sysrq-trigger; sleep 100") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"once\n"
        output, complaint = process.communicate(b"go\n", timeout=LIMIT)
    assert output == b""
    assert process.returncode == 1
    assert complaint == b"balloon-linux: the kernel ended before the command did: sysrq: Resetting\n"


def test_daemon_that_dies_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    mortal = DaemonProcess(tmp_path_factory.mktemp("daemon"))
    launcher = Launcher(mortal.socket_path, tmp_path_factory.mktemp("l"))
    with launcher.start("sh", "-c", "read line; sleep 0.5; echo alive") as process:
        launcher.wait_for("booted")
        mortal.kill()
        output, complaint = process.communicate(b"go\n", timeout=LIMIT)
        assert output == b"alive\n"
        assert process.returncode == 0
        assert complaint.startswith(f"balloon-linux: the daemon at {mortal.socket_path} went away; ".encode())


def test_terminal_has_job_control_and_is_restored(launcher: Launcher) -> None:
    environment = {**launcher.environment, "PS1": "ready> ", "TERM": "vt100"}
    master, slave = pty.openpty()
    set_window_size(master, (40, 100))
    before = subprocess.run(["stty", "-g"], stdin=slave, capture_output=True, check=True).stdout
    process = subprocess.Popen(
        launcher.words("/bin/sh"),
        cwd=ROOT,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    shown = b""

    def read_until(text: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + LIMIT
        while text not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(master, 4096)
        shown = shown[shown.index(text) + len(text) :]

    read_until(b"ready> ")
    os.write(master, b"stty size\r")
    read_until(b"\r\n40 100\r\n")
    set_window_size(master, (50, 132))
    process.send_signal(signal.SIGWINCH)
    os.write(master, b'until [ "$(stty size)" = "50 132" ]; do :; done; echo resized | tr a-z A-Z\r')
    read_until(b"RESIZED\r\n")
    os.write(master, b"sh -c 'echo asleep | tr a-z A-Z; exec sleep 1000'\r")
    read_until(b"ASLEEP")  # said by the job itself, so the terminal is already its own
    os.write(master, b"\x03")
    read_until(b"ready> ")
    os.write(master, b"echo status $? | tr a-z A-Z; exit 9\r")
    read_until(b"STATUS 130\r\n")
    assert process.wait(LIMIT) == 9
    assert subprocess.run(["stty", "-g"], stdin=slave, capture_output=True, check=True).stdout == before
    os.close(master)
    os.close(slave)
    launcher.check_nothing_left()
