"""What a process shows in /proc: written by hand, as a VFIO device and a locked gigabyte are not at hand everywhere."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from host.inhibition.front_end_look import look_at, look_at_files, take_told
from host.inhibition.inhibition import NO_SIGNS, Sign
from tests.harness.processes import until

MIB = 1 << 20


def process(proc: Path, status: str, *targets: str) -> Path:
    """Write what /proc has of process 7."""
    files = proc / "7" / "fd"
    files.mkdir(parents=True)
    (proc / "7" / "status").write_text(f"Name:\tqemu\n{status}")
    for number, target in enumerate(targets):
        (files / str(number)).symlink_to(target)
    return proc


@pytest.mark.parametrize(
    ("status", "targets", "signs"),
    [
        ("State:\tS (sleeping)\nVmLck:\t       0 kB\nVmPin:\t       0 kB\n", ("/dev/kvm", "/dev/vfio/vfio"), NO_SIGNS),
        ("State:\tT (stopped)\n", (), Sign.STOPPED),
        ("State:\tt (tracing stop)\n", (), Sign.STOPPED),
        ("State:\tZ (zombie)\n", (), Sign.GONE),
        ("State:\tR (running)\nVmLck:\t  524288 kB\n", (), Sign.PINNED),
        ("State:\tR (running)\nVmPin:\t 1048576 kB\n", (), Sign.PINNED),
        ("State:\tR (running)\nVmLck:\t    8192 kB\n", (), NO_SIGNS),
        ("State:\tR (running)\nVmLck:\tmuch\n", (), NO_SIGNS),
        ("State:\tS (sleeping)\n", ("socket:[3]", "/dev/vfio/12"), Sign.VFIO),
        ("State:\tS (sleeping)\n", ("/dev/vfio/devices/vfio0", "/dev/iommu"), Sign.VFIO),
        ("State:\tS (sleeping)\n", ("anon_inode:[userfaultfd]",), Sign.USERFAULTFD),
        ("State:\tT (stopped)\n", ("anon_inode:[userfaultfd]", "/dev/vfio/1"), 13),
        ("", (), NO_SIGNS),
        ("\x1cState:\tT\nVmHWM:\t1 kB\n", (), NO_SIGNS),
    ],
)
def test_signs(tmp_path: Path, status: str, targets: tuple[str, ...], signs: int) -> None:
    assert look_at(7, 1024 * MIB, process(tmp_path, status, *targets)) == signs


def test_process_that_cannot_be_looked_at(tmp_path: Path) -> None:
    assert look_at(7, MIB, tmp_path) is Sign.GONE
    assert look_at(0, MIB) == NO_SIGNS
    (process(tmp_path, "State:\tS (sleeping)\n") / "7" / "fd").rmdir()
    assert look_at(7, MIB, tmp_path) == NO_SIGNS


def test_descriptors_that_cannot_be_looked_at_are_told_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look at all descriptors, so the refusal is the test's."""

    def refuse(_path: str) -> str:
        raise PermissionError

    directory = process(tmp_path, "State:\tS (sleeping)\n", "/dev/vfio/1")
    assert look_at_files(7, directory) is Sign.VFIO
    monkeypatch.setattr(os, "readlink", refuse)
    assert look_at(7, MIB, directory) is Sign.UNSEEN
    assert take_told(7, Sign.USERFAULTFD)
    assert not take_told(7, Sign.USERFAULTFD)
    assert look_at(7, MIB, directory) is Sign.USERFAULTFD
    assert take_told(7, NO_SIGNS)
    assert look_at(7, MIB, directory) == NO_SIGNS


def test_this_process_shows_nothing() -> None:
    assert look_at(os.getpid(), MIB) == NO_SIGNS


def test_process_that_is_stopped_and_has_a_userfaultfd() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(323, os.O_CLOEXEC | 1)  # userfaultfd(UFFD_USER_MODE_ONLY) on x86_64
    if os.uname().machine == "x86_64" and fd >= 0:
        assert look_at(os.getpid(), MIB) is Sign.USERFAULTFD
        os.close(fd)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        child.send_signal(signal.SIGSTOP)
        until(lambda: look_at(child.pid, MIB) is Sign.STOPPED, "the child is stopped")
        child.kill()


def test_descriptors_are_remembered(tmp_path: Path) -> None:
    process(tmp_path, "State:\tS (sleeping)\n", "/dev/vfio/1")
    assert look_at(7, MIB, tmp_path, max_age=60.0) is Sign.VFIO
    (tmp_path / "7" / "fd" / "0").unlink()
    assert look_at(7, MIB, tmp_path, max_age=60.0) is Sign.VFIO
    assert look_at(7, MIB, tmp_path) == NO_SIGNS
