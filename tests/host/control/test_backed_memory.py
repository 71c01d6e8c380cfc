"""The memory that the host holds for a guest, queried without blocking."""

import asyncio
import os
import threading

import pytest

import host.control.backed_memory
from host.control.backed_memory import BackedMemory, Refaults
from host.peers.helpers import Helpers
from protocol.errors import VhostUserError
from tests.harness.processes import DEADLINE, open_fds

PAGE = 4096


class SlowFile:
    """A file whose ``fstat`` waits for the test."""

    def __init__(self, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.released = threading.Event()
        fstat = os.fstat

        def blocking(number: int) -> os.stat_result:
            if number == fd:
                self.looks += 1
                self.released.wait()
            return fstat(number)

        monkeypatch.setattr(os, "fstat", blocking)


def memory_file(pages: int) -> int:
    """Return a file of which so many pages were touched."""
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 64 * PAGE)
    os.pwrite(fd, bytes(pages * PAGE), 0)
    return fd


@pytest.mark.asyncio
async def test_pages_that_were_touched_count_once_for_each_file() -> None:
    one, two = memory_file(3), memory_file(2)
    backed = BackedMemory(Helpers().look)
    assert await backed.measure([]) == 0
    assert await backed.measure([one, two, one]) == 5 * PAGE
    os.close(two)
    assert await backed.measure([two, one]) is None
    assert await backed.measure([one]) == 3 * PAGE
    os.close(one)


@pytest.mark.asyncio
async def test_files_that_answer_at_once_need_no_helper() -> None:
    def refuse(*_: object) -> "asyncio.Future[int | None]":
        raise VhostUserError("no thread can be started")

    fd = memory_file(3)
    backed = BackedMemory(refuse)
    assert await backed.measure([fd], at_once=True) == 3 * PAGE
    os.ftruncate(fd, PAGE)
    assert await backed.measure([fd], at_once=True) == PAGE
    os.pwrite(fd, bytes(PAGE), PAGE)
    assert await backed.measure([fd], at_once=True) == 2 * PAGE
    assert backed.refaults.bytes == PAGE
    os.close(fd)


@pytest.mark.asyncio
async def test_two_who_ask_at_once_have_the_number_of_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.backed_memory, "PATIENCE", DEADLINE)
    fd = memory_file(3)
    slow_file = SlowFile(fd, monkeypatch)
    descriptors = open_fds(os.getpid())
    backed = BackedMemory(Helpers().look)
    answers = [asyncio.ensure_future(backed.measure([fd])) for _ in range(3)]
    await asyncio.sleep(0)  # all have asked
    assert open_fds(os.getpid()) == descriptors
    answers.pop().cancel()  # one has hung up
    slow_file.released.set()
    assert await asyncio.gather(*answers) == [3 * PAGE, 3 * PAGE]
    assert slow_file.looks == 1
    os.close(fd)


@pytest.mark.asyncio
async def test_file_that_does_not_answer_holds_up_one_helper_and_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.backed_memory, "PATIENCE", 0.05)
    fd = memory_file(0)
    slow_file = SlowFile(fd, monkeypatch)
    helpers = Helpers()
    backed = BackedMemory(helpers.look)
    assert await backed.measure([fd]) is None
    assert await backed.measure([fd]) is None
    assert slow_file.looks == 1
    assert await helpers.run("looking at another", lambda: 7) == 7
    helpers.close([fd])  # the session ends meanwhile
    assert helpers.closing == 1
    slow_file.released.set()
    async with asyncio.timeout(DEADLINE):
        while helpers.closing:
            await helpers.closed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert await backed.measure([]) == 0


@pytest.mark.asyncio
async def test_limit_of_threads_is_no_number() -> None:
    def refuse(*_: object) -> "asyncio.Future[int | None]":
        raise VhostUserError("no thread can be started")

    assert await BackedMemory(refuse).measure([]) is None


def test_memory_that_comes_back_is_counted() -> None:
    refaults = Refaults()
    for backed in (100, 300, 300, 120, 200, 500, 400, 450):
        refaults.observe(backed)
    # 180 were given back: 80 and then the other 100 came back, the rest was touched for the first time.
    assert refaults.bytes == 180 + 50


def test_memory_that_comes_back_is_counted_on_in_another_process() -> None:
    before, after = Refaults(), Refaults()
    for backed in (100, 300, 120, 200):
        before.observe(backed)
    after.resume(before.write_down())
    for backed in (200, 500, 400, 450):
        after.observe(backed)
    assert (before.bytes, after.bytes) == (80, 180 + 50)
