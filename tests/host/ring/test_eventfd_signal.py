"""Signals that never wait, for any value of the counter and any number of threads."""

import os
import select
import threading
from collections.abc import Iterator

import pytest

from host.ring.eventfd_signal import EventfdSignal
from tests.harness.processes import DEADLINE

FULL = (1 << 64) - 2
"""The highest value that a write can leave, after which the next one waits."""


@pytest.fixture
def eventfd() -> Iterator[int]:
    """An eventfd whose write waits. Skips the test where the kernel offers no other way."""
    fd = os.eventfd(0)
    if not EventfdSignal(fd).signal():
        os.close(fd)
        pytest.skip("no asynchronous requests here")
    assert os.eventfd_read(fd) == 1
    yield fd
    os.close(fd)


def test_signals_all_count(eventfd: int) -> None:
    signal = EventfdSignal(eventfd)
    for _ in range(10_000):  # far more than the kernel keeps results of
        assert signal.signal()
    assert os.eventfd_read(eventfd) == 10_000


def test_full_counter_stays_full_without_a_wait(eventfd: int) -> None:
    os.eventfd_write(eventfd, FULL)
    signal = EventfdSignal(eventfd)
    assert all(signal.signal() for _ in range(1000))
    assert os.eventfd_read(eventfd) == FULL + 1
    assert select.select([eventfd], [], [], 0)[0] == []


def test_threads_share_the_room_for_requests(eventfd: int) -> None:
    def signal() -> None:
        each = EventfdSignal(eventfd)
        taken.append(sum(each.signal() for _ in range(2000)))

    taken: list[int] = []
    threads = [threading.Thread(target=signal) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert os.eventfd_read(eventfd) == sum(taken) == 8 * 2000


def test_descriptor_other_than_an_eventfd_is_not_signalled() -> None:
    reading, writing = os.pipe()
    assert not EventfdSignal(writing).signal()
    assert select.select([reading], [], [], 0)[0] == []
    os.close(reading)
    os.close(writing)
