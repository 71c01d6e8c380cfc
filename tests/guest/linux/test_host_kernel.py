"""What the launcher asks the host: directories for RAM, listeners, children, the RAM file."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.linux.host_kernel import (
    RamFile,
    children,
    choose_ram_directory,
    file_system_of,
    is_listening,
    kill_adopted,
    open_log,
    require_listening,
    scratch_parent,
)
from protocol.errors import BalloonError
from protocol.units import MIB, TIB

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /dev rw,relatime - devtmpfs devtmpfs rw
24 23 0:20 / /dev/shm rw - tmpfs tmpfs rw,size=64k
25 22 0:21 / /mnt/with\\040blank rw - tmpfs tmpfs rw
26 22 0:22 / /over rw - ext4 a rw
27 22 0:23 / /over rw - tmpfs b rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/shm", "tmpfs"),
        ("/dev/shm/x", "tmpfs"),
        ("/dev/shmem", "devtmpfs"),
        ("/home", "ext4"),
        ("/mnt/with blank/x", "tmpfs"),
        ("/over/x", "tmpfs"),
    ],
)
def test_file_system_is_that_of_the_innermost_last_mount(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind


def test_memory_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(BalloonError, match="no place for"):
        choose_ram_directory(1_000_000 * TIB, {})


def test_ram_directory_is_writable() -> None:
    assert os.access(choose_ram_directory(MIB, dict(os.environ)).path, os.W_OK)


def test_scratch_directory_has_a_name_for_the_command_line(tmp_path: Path) -> None:
    strange = tmp_path / "a b"
    strange.mkdir()
    assert scratch_parent({"TMPDIR": str(strange)}) == "/tmp"
    assert scratch_parent({"TMPDIR": "/var/tmp"}) == "/var/tmp"
    assert scratch_parent({}) == "/tmp"


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_listener_is_found_without_connecting(short_directory: Path) -> None:
    path = short_directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert not is_listening(path)
        with pytest.raises(BalloonError, match="nobody listens"):
            require_listening(path)
        listener.listen()
        listener.setblocking(False)
        assert is_listening(path)
        require_listening(path)
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(BalloonError, match="nobody listens"):
        require_listening(path)


def test_listener_under_a_relative_name_is_found(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("s")
        listener.listen()
        require_listening(short_directory / "s")


def test_path_without_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="No such file"):
        require_listening(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(BalloonError, match="not a socket"):
        require_listening(tmp_path / "file")


def test_log_is_a_new_or_emptied_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    os.close(open_log(path))
    assert path.read_text() == ""
    with pytest.raises(BalloonError, match="not a regular file"):
        open_log(Path(os.devnull))
    with pytest.raises(BalloonError, match="No such file"):
        open_log(tmp_path / "missing/log")


def test_adopted_children_are_killed_and_others_live() -> None:
    program = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program]) as other:
        before = children(os.getpid())
        with subprocess.Popen([sys.executable, "-c", program]) as adopted:
            kill_adopted(before)
            with pytest.raises(ProcessLookupError):
                os.kill(adopted.pid, 0)
            adopted.returncode = -9  # reaped behind its back
        assert other.poll() is None
        other.kill()


def test_ram_file_tells_what_the_host_holds() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(64 * MIB)
        ram = RamFile(os.getpid(), 64 * MIB)
        try:
            assert ram.resident_bytes() == 0
            os.pwrite(file.fileno(), b"x" * MIB, 32 * MIB)
            assert ram.resident_bytes() == MIB
        finally:
            ram.close()
    with pytest.raises(BalloonError, match="memory file"):
        RamFile(os.getpid(), TIB)
