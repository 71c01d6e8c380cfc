"""The memory file goes also where a signal has left a view of it."""

import os

import pytest

from protocol.memory import PAGE_SIZE
from scripts.check.machine.memory_file import MemoryFile


def test_memory_that_is_looked_at_is_closed_all_the_same() -> None:
    memory = MemoryFile(PAGE_SIZE)
    with memory.view[:8]:
        memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.fd)
