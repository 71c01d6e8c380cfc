"""The daemon's command line with real sockets: what it refuses, in one line each, and which sockets it takes."""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from host.balloon.offered_features import FEATURE_NAMES
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, until
from tests.harness.signals import stray_signals
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, Client, TestQueue, VirtualMachine


def run_daemon(*options: str, fd: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the daemon to its end, which has to come by itself."""
    return subprocess.run(
        [sys.executable, "-m", "host", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        pass_fds=() if fd is None else (fd,),
        check=False,
    )


USAGE, FAILURE = 2, 1
"""Exit statuses: for what means nothing on any machine, and for what could not be done on this one."""


def assert_refused(result: subprocess.CompletedProcess[str], text: str, status: int = FAILURE) -> None:
    """Check the one form that every error has."""
    assert result.returncode == status
    assert result.stdout == ""
    assert result.stderr.startswith("vhost-user-balloon: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


@pytest.mark.parametrize(
    ("options", "text", "status"),
    [
        ((), "one of --socket-path, --vm, --config and --fd is needed", USAGE),
        (("--socket-path", "{}/s", "--fd", "3"), "--socket-path and --fd are the same socket in two ways", USAGE),
        (("--socket-path", "{}/s", "--keeper", "{}/k"), "--keeper needs --workers", USAGE),
        (("--socket-path", "{}/missing/s"), "No such file or directory", FAILURE),
        (("--socket-path", "{}/" + "x" * 120), "AF_UNIX path too long", FAILURE),
        (("--socket-path", "{}/" + "x" * 300), "File name too long", FAILURE),
        (("--socket-path", "{}/file"), "exists and is not a socket", FAILURE),
        (("--socket-path", "{}"), "exists and is not a socket", FAILURE),
        (("--socket-path", "{}/s", "--events", "{}/missing/events"), "No such file or directory", FAILURE),
        (("--socket-path", "{}/s", "--events", "{}"), "Is a directory", FAILURE),
        (("--socket-path", "{}/s", "--balloon", "1Q"), "not a size", USAGE),
        (("--socket-path", "{}/s", "--balloon", "16T"), "smaller than 16.0 TiB", USAGE),
        (("--socket-path", "{}/s", "--discard", "maybe"), "--discard", USAGE),
        (("--socket-path", "{}/s", "--features", "packet=on"), "no feature 'packet'", USAGE),
        (("--socket-path", "{}/s", "--features", "packed"), "write packed=on or packed=off", USAGE),
        (
            ("--socket-path", "{}/s", "--features", "page-poison=off", "--page-poison", "on"),
            "--features says otherwise",
            USAGE,
        ),
        (
            ("--socket-path", "{}/s", "--features", "page-reporting=off,draft-init-reported=on"),
            "draft-init-reported needs page-reporting",
            USAGE,
        ),
        (("--socket-path", "{}/s", "--personality", "bhyve"), "--personality", USAGE),
        (("--socket-path", "{}/s", "--queue-numbers", "dense"), "--queue-numbers", USAGE),
        (("--socket-path", "{}/s", "--statistics-interval", "-1"), "not from 0 to 4294967295: -1", USAGE),
        (("--socket-path", "{}/s", "--statistics-interval", "1.5"), "not a number of whole seconds: '1.5'", USAGE),
        (("--socket-path", "{}/s", "--control", "{}/missing/c"), "--control", FAILURE),
        (("--socket-path", "{}/s", "--control", "{}/file"), "exists and is not a socket", FAILURE),
        (("--socket-path", "{}/s", "--control", "{}/s"), "virtual machines connect there", USAGE),
        (("--socket-path", "{}/s", "--socket-mode", "888"), "not three octal digits, such as 660: '888'", USAGE),
        (("--socket-path", "{}/s", "--socket-mode", "1777"), "not three octal digits", USAGE),
        (("--socket-path", "{}/s", "--socket-group", "no-such-group"), "no group 'no-such-group'", USAGE),
        (("--socket-path", "{}/s", "--control-mode", "660"), "--control-mode and --control-group need", USAGE),
        (("--fd", "0", "--socket-mode", "660"), "--socket-mode and --socket-group need", USAGE),
        (("--ask", "{}/c"), "--ask needs the PATH of a control socket and a COMMAND", USAGE),
        (("--ask", "{}/c", "query-vms"), "No such file or directory", FAILURE),
        (("--ask", "{}/c", "balloon", "512M"), "NAME=VALUE, not '512M'", USAGE),
        (("--ask", "{}/c", "balloon", "value=1", "value=2"), "argument value comes twice", USAGE),
        (("--socket-path", "{}/s", "--no-such-option"), "--no-such-option", USAGE),
        (("--fd", "four"), "--fd", USAGE),
        (("--fd", "77"), "Bad file descriptor", FAILURE),
        (("--fd", "4"), "Bad file descriptor", FAILURE),
        (("--fd=-1",), "not a file descriptor number", USAGE),
        (("--fd", "99999999999999"), "not a file descriptor number", USAGE),
        (("--fd", "0"), "Socket operation on non-socket", FAILURE),
    ],
)
def test_errors_are_one_line(tmp_path: Path, options: tuple[str, ...], text: str, status: int) -> None:
    (tmp_path / "file").write_text("precious", encoding="ascii")
    result = subprocess.run(
        [sys.executable, "-m", "host", *(option.format(tmp_path) for option in options)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert_refused(result, text, status)
    assert (tmp_path / "file").read_text(encoding="ascii") == "precious"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ((socket.AF_INET, socket.SOCK_DGRAM), "not a unix stream socket"),
        ((socket.AF_INET, socket.SOCK_STREAM), "not a unix stream socket"),
        ((socket.AF_UNIX, socket.SOCK_DGRAM), "not a unix stream socket"),
        ((socket.AF_UNIX, socket.SOCK_STREAM), "neither listens nor is connected"),
    ],
)
def test_inherited_socket_of_the_wrong_kind(kind: tuple[socket.AddressFamily, socket.SocketKind], text: str) -> None:
    with socket.socket(*kind) as sock:
        assert_refused(run_daemon("--fd", str(sock.fileno()), fd=sock.fileno()), text)


def run_in_shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon by a line of shell, in which ``{}`` is its command."""
    return subprocess.run(
        ["sh", "-c", line.format(f"{sys.executable} -m host")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def test_descriptor_limit_too_low_is_one_line(tmp_path: Path) -> None:
    for limit in (9, 12, 255):
        result = run_in_shell(f"ulimit -n {limit}; exec {{}} --socket-path {tmp_path}/s --control {tmp_path}/c")
        assert_refused(result, f"at most {limit} open files are allowed (ulimit -n), and 256 are needed")
        assert list(tmp_path.iterdir()) == []


def test_least_descriptor_limit_serves_two_machines_of_one_process(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (256, 256))
        with VirtualMachine(daemon.socket_path) as one, VirtualMachine(daemon.socket_path) as two:
            one.check_alive()
            two.check_alive()


def test_closed_standard_output_is_one_line_where_it_is_needed(tmp_path: Path) -> None:
    result = run_in_shell(f"exec {{}} --socket-path {tmp_path}/s --events - >&-")
    assert_refused(result, "--events -: standard output is closed")
    assert run_in_shell("exec {} --print-capabilities >&-").stderr == ""


@pytest.mark.parametrize(
    ("options", "socket_mode", "control_mode"),
    [
        ((), 0o777, 0o600),
        (("--socket-mode", "666"), 0o666, 0o600),
        (("--socket-mode", "0640", "--control-mode", "0644"), 0o640, 0o644),
        (("--socket-group", str(os.getgid()), "--control-group", str(os.getgid())), 0o660, 0o660),
    ],
)
def test_opening_one_socket_does_not_open_the_other(
    tmp_path: Path, options: tuple[str, ...], socket_mode: int, control_mode: int
) -> None:
    mask = os.umask(0)
    try:
        with DaemonProcess(tmp_path, "--control", str(tmp_path / "control"), *options) as daemon:
            assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == socket_mode
            assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == control_mode
    finally:
        os.umask(mask)


def test_stray_signals_do_not_end_the_daemon(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        for number in stray_signals(but={signal.SIGUSR1}):
            daemon.signal(number)
        machine.check_alive()
        daemon.signal(signal.SIGUSR1)
        until(lambda: "vm 1" in daemon.stderr(), "the status")
        assert daemon.stderr().startswith("vhost-user-balloon: 1 connected, 1 so far, in ")
        daemon.forget_stderr()


def test_hangup_reopens_the_events(tmp_path: Path) -> None:
    path = tmp_path / "events"
    command = [sys.executable, "-m", "host", "--socket-path", str(tmp_path / "s"), "--events", str(path)]
    with subprocess.Popen(command, cwd=ROOT) as daemon:
        try:
            until(lambda: path.exists() and "listening" in path.read_text(), "the first event")
            path.rename(tmp_path / "old")
            daemon.send_signal(signal.SIGHUP)
            until(path.exists, "a new file")
            with VirtualMachine(tmp_path / "s"):
                until(lambda: "connected" in path.read_text(), "an event in the new file")
        finally:
            daemon.terminate()
        assert daemon.wait(DEADLINE) == 0
    assert "connected" not in (tmp_path / "old").read_text()
    assert not (tmp_path / "s").exists()


def test_path_on_which_a_daemon_lives_is_left_to_it(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.check_alive()
        assert_refused(run_daemon("--socket-path", str(daemon.socket_path)), "another process listens there")
        machine.check_alive()
        with VirtualMachine(daemon.socket_path) as second:
            second.check_alive()


def test_killed_daemons_socket_file_is_replaced(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path)
    first.kill()
    assert first.socket_path.is_socket()
    with DaemonProcess(tmp_path) as second, VirtualMachine(second.socket_path) as machine:
        machine.check_alive()
    assert not second.socket_path.exists()


def test_socket_file_that_was_replaced_is_not_removed(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        daemon.socket_path.unlink()
        daemon.socket_path.write_text("not ours", encoding="ascii")
    assert daemon.socket_path.read_text(encoding="ascii") == "not ours"


def test_capabilities_are_printed_with_any_other_options(tmp_path: Path) -> None:
    result = run_daemon("--no-such-option", "--fd", "x", "--print-capabilities", "--socket-path", str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["type"] == "balloon"


def test_capabilities_name_every_feature() -> None:
    assert set(json.loads(run_daemon("--print-capabilities").stdout)["features"]) == set(FEATURE_NAMES)


def test_features_are_offered_as_asked(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--features", "packed=on,page-poison=on,event-idx=off") as daemon:
        client = Client(daemon.socket_path)
        offered = client.ask(FrontendRequest.GET_FEATURES)
        client.close()
    assert isinstance(offered, int)
    assert [offered >> bit & 1 for bit in (34, 4, 29, 28, 5)] == [1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "number"), [((), 3), (("--queue-numbers", "fixed"), 4), (("--features", "statistics=off"), 2)]
)
def test_option_of_its_own_counts_more_than_a_personality(
    tmp_path: Path, options: tuple[str, ...], number: int
) -> None:
    """Firecracker numbers by what it offers; this driver declines the statistics."""
    with (
        DaemonProcess(tmp_path, "--personality", "firecracker", *options) as daemon,
        VirtualMachine(daemon.socket_path, run=False) as vm,
    ):
        assert vm.features >> 28 & 0b11 == 0  # neither indirect nor event-idx
        vm.set_memory()
        page = DATA_AT
        vm.ram.touch(page, PAGE_SIZE)
        queue = TestQueue(vm.ram, number, vm.features)
        vm.start(queue)
        queue.driver.add((), [(GUEST_BASE + page, PAGE_SIZE)])
        queue.kick()
        queue.collect()
        assert vm.ram.pages() == set()
        queue.close()


@pytest.mark.parametrize("choice", ["auto", "negotiated", "offered", "fixed"])
def test_driver_may_ask_for_five_queues_however_they_are_numbered(tmp_path: Path, choice: str) -> None:
    with DaemonProcess(tmp_path, "--queue-numbers", choice, "--features", "statistics=off") as daemon:
        client = Client(daemon.socket_path)
        assert client.ask(FrontendRequest.GET_QUEUE_NUM) == 5
        client.close()


def test_version_is_one_line() -> None:
    result = run_daemon("--version")
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert result.stdout.startswith("vhost-user-balloon ")


def start_with_events(path: Path, events: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start a daemon without a follower of its events, its standard error a pipe."""
    options = ("--socket-path", str(path), "--events", events)
    return subprocess.Popen([sys.executable, "-m", "host", *options], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)


def test_reader_of_events_that_goes_away_does_not_affect_sessions(tmp_path: Path) -> None:
    path = tmp_path / "balloon.sock"
    reading, writing = os.pipe()
    process = start_with_events(path, "-", writing)
    os.close(writing)
    until(path.is_socket, "the daemon's socket")
    assert b"listening" in os.read(reading, 4096)
    os.close(reading)
    for _ in range(2):
        with VirtualMachine(path) as machine:
            machine.check_alive()
    process.terminate()
    assert (process.communicate(timeout=DEADLINE)[1], process.returncode) == (b"", 0)


def test_reader_of_events_that_stalls_does_not_delay_sessions(tmp_path: Path) -> None:
    path = tmp_path / "balloon.sock"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    process = start_with_events(path, "-", writing)
    os.close(writing)
    until(path.is_socket, "the daemon's socket")
    until(lambda: can_connect(path), "the daemon listens")
    for _ in range(2):
        with VirtualMachine(path) as machine:
            machine.check_alive()
    process.terminate()
    said = b"events: the reader does not take them: the last ones are missing\n"
    assert (process.communicate(timeout=DEADLINE)[1], process.returncode) == (said, 0)
    os.close(reading)


def test_full_disk_under_the_events_does_not_affect_sessions(tmp_path: Path) -> None:
    path = tmp_path / "balloon.sock"
    process = start_with_events(path, "/dev/full")
    until(path.is_socket, "the daemon's socket")
    until(lambda: can_connect(path), "the daemon listens")
    with VirtualMachine(path) as machine:
        machine.check_alive()
    process.terminate()
    said = (
        b"events: No space left on device: they wait for room\nevents: No space left on device: no more are written\n"
    )
    assert (process.communicate(timeout=DEADLINE)[1], process.returncode) == (said, 0)


def can_connect(path: Path) -> bool:
    """Return whether a back-end answers at ``path``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if connection.connect_ex(str(path)) != 0:
        connection.close()
        return False
    client = Client(connection)
    client.ask(FrontendRequest.GET_FEATURES)
    client.close()
    return True
