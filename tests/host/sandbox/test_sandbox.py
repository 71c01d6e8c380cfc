"""What a confined process cannot do any more, each tried in a process of its own."""

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import host
from host.sandbox import sandbox
from host.sandbox.sandbox import confine
from host.sandbox.system_calls import ALLOWED, CONDITIONAL, ENDS, REFUSED

pytestmark = pytest.mark.processes


def outcome(readable: list[Path], action: Callable[[], object]) -> str:
    """Return what becomes of an action in a process that was confined before: an error's name, or what could not be
    given up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = confine(readable)
        try:
            action()
            said = f"done, {left}"
        except OSError as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def connect(address: tuple[str, int]) -> None:
    with socket.socket() as sock:
        sock.connect(address)


def test_files_and_the_network_are_out_of_reach(tmp_path: Path) -> None:
    if outcome([], lambda: None) != "done, []":
        pytest.skip("a kernel without Landlock")
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "file").write_text("text")
    (tmp_path / "file").write_text("text")
    allowed = [tmp_path / "allowed", tmp_path / "absent"]
    assert outcome(allowed, (tmp_path / "allowed" / "file").read_text).startswith("done")
    assert outcome(allowed, lambda: (tmp_path / "allowed" / "new").write_text("")) == "PermissionError"
    assert outcome(allowed, (tmp_path / "file").read_text) == "PermissionError"
    assert outcome(allowed, lambda: (tmp_path / "file").unlink()) == "PermissionError"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert outcome(allowed, lambda: connect(server.getsockname())) == "PermissionError"


def test_privileges_are_gone() -> None:
    def check() -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if (int(status["CapPrm"], 16), int(status["CapEff"], 16), status["NoNewPrivs"]) != (0, 0, "1"):
            raise OSError(str(status))

    assert outcome([Path("/proc")], check).startswith("done")


class Libc:
    """A kernel that refuses capset(2), with a Landlock of this version, to a process with these capabilities."""

    def __init__(self, capabilities: int, landlock: int) -> None:
        self._capabilities = capabilities
        self._landlock = landlock

    def prctl(self, *_arguments: int) -> int:
        return 0

    def syscall(self, number: ctypes.c_long, *arguments: Any) -> int:
        if number.value == sandbox._CAPSET:
            return -1
        if number.value == sandbox._CAPGET:
            struct.pack_into("=III", arguments[1], 0, *[self._capabilities] * 3)
        if number.value == sandbox._CREATE_RULESET:
            return self._landlock if arguments[0] is None else os.dup(0)
        return 0


@pytest.mark.parametrize(
    ("capabilities", "landlock", "calls_are_limited", "left"),
    [
        (0, 3, True, []),
        (0, 4, True, []),
        (1, 4, True, ["capabilities"]),
        (0, 3, False, ["the network", "system calls"]),
        (0, 0, True, ["the file system"]),
    ],
)
def test_what_is_said_to_be_left_is_left(
    monkeypatch: pytest.MonkeyPatch, capabilities: int, landlock: int, calls_are_limited: bool, left: list[str]
) -> None:
    monkeypatch.setattr(sandbox, "_libc", Libc(capabilities, landlock))
    monkeypatch.setattr(sandbox, "limit_system_calls", lambda: calls_are_limited)
    assert outcome([], lambda: None) == f"done, {left}"


def end_of(action: Callable[[], object]) -> int:
    """Return how a confined process ends that does something: an errno, 0 if it was done, a signal's number below 0."""
    pid = os.fork()
    if pid == 0:
        confine([Path("/proc")])
        try:
            action()
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def thread() -> None:
    one = threading.Thread(target=lambda: None)
    one.start()
    one.join()


SYSTEM_CALLS: dict[str, tuple[Callable[[], object], int]] = {
    "another program": (lambda: os.execv("/bin/true", ["true"]), -signal.SIGSYS),
    "another process": (os.fork, errno.ENOSYS),
    "a thread": (thread, 0),
    "a socket": (lambda: socket.socket(socket.AF_UNIX), errno.EPERM),
    "a pair of unix sockets": (socket.socketpair, 0),
    "a signal": (lambda: os.kill(os.getpid(), signal.SIGTERM), errno.EPERM),
    "its limits": (lambda: resource.getrlimit(resource.RLIMIT_NOFILE), 0),
    "another limit": (lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), errno.ENOSYS),
    "a directory": (lambda: os.mkdir("/tmp/no-directory"), errno.EPERM),
    "another user": (lambda: os.setuid(os.getuid()), errno.EPERM),
    "a memory file": (lambda: os.ftruncate(os.memfd_create("file"), 4096), 0),
    "a file of procfs": (Path("/proc/self/status").read_bytes, 0),
    "a call that it does not need": (lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)), errno.ENOSYS),
}


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_call_is_allowed_or_refused_or_ends_the_process(name: str) -> None:
    if "system calls" in outcome([], lambda: None):
        pytest.skip("libseccomp is not installed")
    action, end = SYSTEM_CALLS[name]
    assert end_of(action) == end


def test_lists_of_system_calls_do_not_overlap_and_are_told_of() -> None:
    allowed = [name for names in ALLOWED.values() for name in names.split()]
    every = [*allowed, *CONDITIONAL, *REFUSED.split(), *ENDS.split()]
    assert len(set(every)) == len(every)
    told = (Path(host.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert {*allowed, *CONDITIONAL} <= set(told.split())
