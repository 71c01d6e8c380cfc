"""Files that tell whether another process still has them: here duplicates of the same process stand for it."""

import mmap
import os

import pytest

from scripts.check.generic.watched_file import WatchedMemory, WatchedPipe


def test_memory_is_held_by_a_descriptor() -> None:
    memory = WatchedMemory(mmap.PAGESIZE)
    theirs = os.dup(memory.fd)
    assert not memory.is_released(0.01)
    os.close(theirs)
    assert memory.is_released(0.01)
    memory.close()


def test_memory_is_held_by_a_mapping() -> None:
    memory = WatchedMemory(mmap.PAGESIZE)
    theirs = os.dup(memory.fd)
    mapping = mmap.mmap(theirs, mmap.PAGESIZE)
    os.close(theirs)
    assert not memory.is_released(0.01)
    mapping.close()
    assert memory.is_released(0.01)
    memory.close()


@pytest.mark.parametrize("reading", [False, True])
def test_pipe_is_held_by_a_descriptor(reading: bool) -> None:
    pipe = WatchedPipe(reading=reading)
    theirs = os.dup(pipe.fd)
    assert not pipe.is_released(0.01)
    os.close(theirs)
    assert pipe.is_released(0.01)
    pipe.close()
