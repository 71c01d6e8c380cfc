"""The dirty log: which bits are set, that another process's bits are never lost, and what a hostile file can do."""

import fcntl
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.migration.dirty_log import DirtyLog
from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE

ROOT = Path(__file__).resolve().parents[3]
TOP = 1 << 64


class LogFile:
    """A memory file as a front-end shares it, and the bits that are set in it."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("test-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)

    def bits(self) -> set[int]:
        """Return the numbers of the bits that are set, counted from the beginning of the file."""
        data = os.pread(self.fd, os.fstat(self.fd).st_size, 0)
        return {8 * at + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1}

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


@pytest.fixture
def file() -> Iterator[LogFile]:
    file = LogFile(4 * PAGE_SIZE)
    yield file
    file.close()


@pytest.fixture
def dirty_log() -> Iterator[DirtyLog]:
    dirty_log = DirtyLog()
    yield dirty_log
    dirty_log.close()


def mappings() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("test-log")


def test_absent_log_marks_nothing(dirty_log: DirtyLog) -> None:
    dirty_log.mark(0, PAGE_SIZE)
    dirty_log.close()


def test_bit_is_set_for_each_page_that_is_touched(dirty_log: DirtyLog, file: LogFile) -> None:
    dirty_log.map(file.fd, PAGE_SIZE, 0)
    dirty_log.mark(5 * PAGE_SIZE + 17, 1)
    assert file.bits() == {5}
    dirty_log.mark(40 * PAGE_SIZE - 1, 2)
    assert file.bits() == {5, 39, 40}
    dirty_log.mark(100 * PAGE_SIZE, 3 * PAGE_SIZE)
    assert file.bits() == {5, 39, 40, 100, 101, 102}


@pytest.mark.parametrize("offset", [1, 3, 64, PAGE_SIZE, PAGE_SIZE + 7])
def test_log_begins_at_an_offset_of_any_alignment(dirty_log: DirtyLog, file: LogFile, offset: int) -> None:
    dirty_log.map(file.fd, 16, offset)
    for page in (0, 7, 8, 127):
        dirty_log.mark(page * PAGE_SIZE, 1)
    assert file.bits() == {8 * offset + page for page in (0, 7, 8, 127)}


def test_write_past_the_end_of_the_log_is_not_logged(dirty_log: DirtyLog, file: LogFile) -> None:
    dirty_log.map(file.fd, 3, 2)
    dirty_log.mark(23 * PAGE_SIZE, 5 * PAGE_SIZE)
    dirty_log.mark(24 * PAGE_SIZE, PAGE_SIZE)
    dirty_log.mark(TOP - 1, 1)
    assert file.bits() == {16 + 23}


@given(st.lists(st.tuples(st.integers(0, 600 * PAGE_SIZE), st.integers(1, 40 * PAGE_SIZE)), max_size=6))
def test_writes_set_exactly_their_pages(writes: list[tuple[int, int]]) -> None:
    dirty_log, file = DirtyLog(), LogFile(PAGE_SIZE)
    dirty_log.map(file.fd, 80, 0)
    for address, length in writes:
        dirty_log.mark(address, length)
    assert file.bits() == {
        page
        for address, length in writes
        for page in range(address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE + 1)
        if page < 640
    }
    dirty_log.close()
    file.close()


_OTHER_PROCESS = """
import sys
from host.migration.dirty_log import DirtyLog
log = DirtyLog()
log.map(int(sys.argv[1]), 16384, 0)
print(flush=True)
sys.stdin.read(1)
for page in range(1, 131072, 8):
    log.mark(page << 12, 1)
"""


def test_neighbouring_bits_set_by_two_processes_are_kept(dirty_log: DirtyLog, file: LogFile) -> None:
    """Both walk the same bytes at the same time, one sets bit 0 of each and the other bit 1."""
    os.set_inheritable(file.fd, True)
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, str(file.fd)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[file.fd],
    )
    assert other.stdin is not None
    assert other.stdout is not None
    dirty_log.map(file.fd, 16384, 0)
    other.stdout.readline()
    other.stdin.write(b"x")
    other.stdin.flush()
    for page in range(0, 131072, 8):
        dirty_log.mark(page << 12, 1)
    other.communicate(timeout=20)
    assert other.returncode == 0
    assert os.pread(file.fd, 16384, 0) == b"\x03" * 16384


def test_file_that_is_cut_short_ends_the_log_and_nothing_else(
    dirty_log: DirtyLog, file: LogFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dirty_log.map(file.fd, 4 * PAGE_SIZE, 0)
    os.ftruncate(file.fd, 0)
    dirty_log.mark(0, 1)
    dirty_log.mark(0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "the dirty log is gone, nothing is logged any more: Bad address"
    ]
    assert mappings() == 0


def test_new_log_replaces_the_old_one_which_is_given_up(dirty_log: DirtyLog, file: LogFile) -> None:
    dirty_log.map(file.fd, PAGE_SIZE, 0)
    other = LogFile(PAGE_SIZE)
    dirty_log.map(other.fd, PAGE_SIZE, 0)
    assert mappings() == 1
    dirty_log.mark(0, 1)
    assert (file.bits(), other.bits()) == (set(), {0})
    dirty_log.close()
    assert mappings() == 0
    other.close()


@pytest.mark.parametrize(
    ("size", "offset", "why"),
    [
        (0, 0, "is empty"),
        (TOP - 1, 2, "exceeds 2**64"),
        (2, TOP - 1, "exceeds 2**64"),
        (TOP - 1, 0, "exceeds its file"),
        (1, TOP - 1, "exceeds its file"),
        (4 * PAGE_SIZE, 1, "exceeds its file"),
        (1, 4 * PAGE_SIZE, "exceeds its file"),
    ],
)
def test_size_or_an_offset_that_makes_no_sense_keeps_the_old_log(
    dirty_log: DirtyLog, file: LogFile, size: int, offset: int, why: str
) -> None:
    dirty_log.map(file.fd, PAGE_SIZE, 0)
    with pytest.raises(VhostUserError, match=why.replace("*", r"\*")):
        dirty_log.map(file.fd, size, offset)
    dirty_log.mark(0, 1)
    assert file.bits() == {0}


def test_files_that_cannot_be_a_log(dirty_log: DirtyLog, file: LogFile, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = tmp_path / "log"
    path.write_bytes(bytes(PAGE_SIZE))
    only_readable = os.open(path, os.O_RDONLY)
    for fd in (reading, writing, only_readable):
        with pytest.raises(VhostUserError):
            dirty_log.map(fd, PAGE_SIZE, 0)
        os.close(fd)
    fcntl.fcntl(file.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(VhostUserError, match="cannot be mapped"):
        dirty_log.map(file.fd, PAGE_SIZE, 0)
    assert mappings() == 0


def test_mark_is_signalled_once_where_asked_for(dirty_log: DirtyLog, file: LogFile) -> None:
    signals: list[set[int]] = []
    dirty_log.map(file.fd, mmap.PAGESIZE, 0)
    dirty_log.set_call(lambda: signals.append(file.bits()))
    dirty_log.mark(PAGE_SIZE, 2 * PAGE_SIZE)
    assert signals == [{1, 2}]


def test_signal_that_blocks_does_not_delay_others(dirty_log: DirtyLog, file: LogFile) -> None:
    """A front-end can fill its eventfd right before it is written to; the event loop takes another log all the same."""
    held, go = threading.Event(), threading.Event()

    def call() -> None:
        held.set()
        assert go.wait(10)

    def take_another() -> None:
        dirty_log.map(file.fd, mmap.PAGESIZE, 0)
        dirty_log.set_call(None)

    dirty_log.map(file.fd, mmap.PAGESIZE, 0)
    dirty_log.set_call(call)
    worker = threading.Thread(target=dirty_log.mark, args=(PAGE_SIZE, 1))
    worker.start()
    assert held.wait(10)
    loop = threading.Thread(target=take_another, daemon=True)
    loop.start()
    loop.join(5)
    assert not loop.is_alive()
    go.set()
    worker.join()
    assert file.bits() == {1}
