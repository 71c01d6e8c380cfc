"""The guest's RAM file, and where the kernel makes it."""

import os
import tempfile

import pytest

from guest.linux.ram_file import RamFile, choose_ram_directory, file_system_of
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
