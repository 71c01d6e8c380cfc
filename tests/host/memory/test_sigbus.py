"""Mappings of files that are cut short: they hold zeros from then on and say so."""

import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from host.memory.sigbus import GuardedMapping, guard_mappings
from protocol.memory import PAGE_SIZE

PAGES = 4


def states(*mappings: GuardedMapping) -> list[bool]:
    return [guarded.lost for guarded in mappings]


@pytest.fixture(autouse=True)
def guarded() -> None:
    assert guard_mappings()


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.memfd_create("cut-short", os.MFD_CLOEXEC)
    os.ftruncate(number, PAGES * PAGE_SIZE)
    yield number
    os.close(number)


def test_lost_page_reads_as_zero_and_keeps_writes_private(fd: int) -> None:
    guarded = GuardedMapping(fd, PAGES * PAGE_SIZE, 0)
    with memoryview(guarded.mapping).cast("H") as view:
        view[7] = 7
        os.ftruncate(fd, PAGE_SIZE)
        assert view[7] == 7
        assert states(guarded) == [False]
        assert view[PAGE_SIZE // 2] == 0
        assert states(guarded) == [True]
        view[7] = 8  # private as well, although the file still has this part
        view[PAGE_SIZE // 2] = 9
        assert (view[7], view[PAGE_SIZE // 2]) == (8, 9)
    assert os.pread(fd, 2, 14) == b"\x07\x00"
    assert os.fstat(fd).st_size == PAGE_SIZE
    guarded.close()
    guarded.close()


def test_store_is_as_good_as_a_load(fd: int) -> None:
    guarded = GuardedMapping(fd, PAGE_SIZE, PAGE_SIZE)
    with memoryview(guarded.mapping).cast("I") as view:
        os.ftruncate(fd, 0)
        view[0] = 1
        assert guarded.lost
    guarded.close()


def test_mappings_of_other_files_keep_what_they_have(fd: int) -> None:
    lost, kept = GuardedMapping(fd, PAGE_SIZE, PAGE_SIZE), GuardedMapping(fd, PAGE_SIZE, 0)
    with memoryview(lost.mapping) as view, memoryview(kept.mapping) as other:
        other[0] = 5
        os.ftruncate(fd, PAGE_SIZE)
        assert view[0] == 0
        assert states(lost, kept) == [True, False]
        other[1] = 6
    lost.close()
    kept.close()
    assert os.pread(fd, 2, 0) == b"\x05\x06"


def test_lost_memory_in_many_threads_at_once(fd: int) -> None:
    lost: list[bool] = []

    def lose() -> None:
        for _ in range(50):
            file = os.memfd_create("cut-short", os.MFD_CLOEXEC)
            os.ftruncate(file, PAGE_SIZE)
            guarded = GuardedMapping(file, PAGE_SIZE, 0)
            with memoryview(guarded.mapping).cast("H") as view:
                os.ftruncate(file, 0)
                view[5] = view[6] + 1
                lost.append(guarded.lost)
            guarded.close()
            os.close(file)

    threads = [threading.Thread(target=lose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == [True] * 200


def test_mapping_that_is_not_guarded_dies_as_ever() -> None:
    program = (
        "import mmap, os\n"
        "from host.memory.sigbus import guard_mappings\n"
        "assert guard_mappings()\n"
        "fd = os.memfd_create('cut-short')\n"
        "os.ftruncate(fd, 4096)\n"
        "mapping = mmap.mmap(fd, 4096)\n"
        "os.ftruncate(fd, 0)\n"
        "mapping[0]\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=20).returncode == -signal.SIGBUS


def test_file_that_ends_too_early_is_not_mapped(fd: int) -> None:
    with pytest.raises(ValueError, match="file size"):
        GuardedMapping(fd, PAGES * PAGE_SIZE + mmap.PAGESIZE, 0)
