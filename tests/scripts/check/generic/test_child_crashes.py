"""Crashes of a program's child, which the program's own status does not show."""

import os
import signal
import struct
import subprocess
import sys

import pytest

from scripts.check.generic.child_crashes import ChildCrashes, crash_signal

EXIT = 1 << 3

CHILD = "import os, sys\nprint(flush=True)\nsys.stdin.read()\nos.kill(os.getpid(), int(sys.argv[1]))"
PARENT = "import subprocess, sys\nsubprocess.call([sys.executable, '-c', *sys.argv[1:]])\nsys.exit(1)"

RELEASE = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.parametrize(
    ("mask", "status", "expected"),
    [
        (EXIT, signal.SIGSEGV, signal.SIGSEGV),
        (EXIT, signal.SIGABRT | 0x80, signal.SIGABRT),
        (EXIT, signal.SIGTERM, None),
        (EXIT, 1 << 8, None),
        (0, signal.SIGSEGV, None),
    ],
)
def test_crash_is_read_from_what_the_kernel_says(mask: int, status: int, expected: signal.Signals | None) -> None:
    assert crash_signal(struct.pack("<Q52xi", mask, status)) is expected


@pytest.mark.processes
@pytest.mark.skipif(RELEASE < (6, 15), reason="this kernel does not tell how another's child ended")
@pytest.mark.parametrize(("number", "said"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGTERM, "")])
def test_child_that_crashes_is_named(number: signal.Signals, said: str) -> None:
    crashes = ChildCrashes()
    words = [sys.executable, "-c", PARENT, CHILD, str(int(number))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdout.readline()
        crashes.watch(program.pid)
        assert crashes.take() == ""
        program.stdin.close()
        assert program.wait() == 1
    assert crashes.take().endswith(f"was ended by {said}" if said else "")
    assert crashes.take() == ""
    crashes.close()
