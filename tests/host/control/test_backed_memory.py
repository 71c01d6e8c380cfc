"""The memory that the host holds for a guest, queried without blocking."""

import asyncio
import os
import threading

import pytest

import host.control.backed_memory
from host.control.backed_memory import BackedMemory
from tests.harness.processes import DEADLINE

PAGE = 4096


@pytest.mark.asyncio
async def test_pages_that_were_touched_count_once_for_each_file() -> None:
    one, two = os.memfd_create("one"), os.memfd_create("two")
    for fd, pages in ((one, 3), (two, 2)):
        os.ftruncate(fd, 64 * PAGE)
        os.pwrite(fd, bytes(pages * PAGE), 0)
    backed = BackedMemory()
    assert await backed.measure([]) == 0
    assert await backed.measure([one, two, one]) == 5 * PAGE
    os.close(two)
    assert await backed.measure([two, one]) is None
    assert await backed.measure([one]) == 3 * PAGE
    os.close(one)


@pytest.mark.asyncio
async def test_file_that_does_not_answer_holds_up_one_thread_and_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.backed_memory, "PATIENCE", 0.05)
    released = threading.Event()
    looks: list[int] = []
    fstat = os.fstat

    def blocking(fd: int) -> os.stat_result:
        looks.append(fd)
        released.wait()
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", blocking)
    fd = os.memfd_create("slow")
    backed = BackedMemory()
    assert await backed.measure([fd]) is None
    assert await backed.measure([fd]) is None
    assert len(looks) == 1
    released.set()
    async with asyncio.timeout(DEADLINE):
        while await backed.measure([fd]) is None:
            await asyncio.to_thread(released.wait)
    os.close(fd)
