"""The balloon driver: what it accepts, how a report looks in the ring, when a report counts as acknowledged."""

import pytest

from guest.virtio_balloon import WANTED, BalloonDriver, accept_features
from guest.virtqueue import QueueFullError
from protocol.errors import VirtqueueError
from tests.pair.ring_memory import RingMemory

REPORTING, POISON = 1 << 5, 1 << 4


def test_the_driver_wants_what_it_understands() -> None:
    assert WANTED == 1 << 2 | 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32


def test_nothing_is_accepted_that_was_not_offered_or_not_understood() -> None:
    assert accept_features(2**64 - 1) == WANTED
    assert accept_features(REPORTING) == REPORTING
    assert accept_features(0) == 0
    assert accept_features(2**64 - 1, wanted=1 << 32) == 1 << 32


@pytest.mark.parametrize("pattern", [0, 0xAAAA_AAAA])
def test_a_guest_that_fills_free_pages_tells_the_device_or_does_not_report(pattern: int) -> None:
    # virtio 1.2, 5.5.3: a driver that needs its pattern MUST NOT accept PAGE_REPORTING without PAGE_POISON.
    assert accept_features(REPORTING | POISON, page_poison=pattern) == REPORTING | POISON
    assert accept_features(REPORTING, page_poison=pattern) == 0
    assert accept_features(REPORTING | POISON) == REPORTING


class Device:
    """A balloon driver with its three queues, and the memory of the reporting queue."""

    def __init__(self, size: int = 64, *, event_idx: bool = True) -> None:
        self.memory = RingMemory(size, tables=1, capacity=32)
        others = [RingMemory(2).driver() for _ in range(2)]
        self.driver = BalloonDriver(1 << 32 | REPORTING, [*others, self.memory.driver(event_idx=event_idx)])
        self.queue = self.memory.device(event_idx=event_idx)

    def acknowledge(self) -> None:
        """Give one report back."""
        chain = self.queue.pop()
        assert chain is not None
        self.queue.add_used(chain.head, 0)


@pytest.mark.parametrize(("features", "queues", "reports"), [(0, 2, False), (REPORTING, 3, True), (0x2A, 5, True)])
def test_the_driver_has_a_queue_for_everything_negotiated(features: int, queues: int, reports: bool) -> None:
    driver = BalloonDriver(features, [RingMemory(2).driver() for _ in range(queues)])
    assert driver.can_report is reports
    with pytest.raises(ValueError, match="argument 2"):
        BalloonDriver(features, [])


def test_a_report_is_one_chain_of_writable_buffers_that_are_the_pages() -> None:
    device = Device()
    assert device.driver.report([(0x100, 9), (0x40, 0), (0xFFFFF, 10)])
    chain = device.queue.pop()
    assert chain is not None
    assert chain.readable == []
    assert chain.writable == [(0x100000, 2 << 20), (0x40000, 4096), (0xFFFFF000, 4 << 20)]
    assert chain.indirect_table is not None


def test_a_report_is_acknowledged_when_its_chain_is_used_and_not_before() -> None:
    device = Device()
    device.driver.report([(0x100, 9)])
    assert not device.driver.acknowledged()
    device.acknowledge()
    assert device.queue.needs_notification()
    assert device.driver.acknowledged()
    assert not device.driver.acknowledged()


def test_the_used_length_of_a_report_means_nothing() -> None:
    device = Device()
    device.driver.report([(0x100, 9)])
    chain = device.queue.pop()
    assert chain is not None
    device.queue.add_used(chain.head, 2 << 20)
    assert device.driver.acknowledged()


def test_an_acknowledgement_that_comes_while_the_driver_falls_asleep_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.driver.report([(0x100, 9)])
    pending = [device.acknowledge]
    monkeypatch.setattr("guest.virtqueue.full_fence", lambda: pending.pop()() if pending else None)
    assert device.driver.acknowledged()


def test_reports_follow_one_another_through_a_small_ring() -> None:
    device = Device(size=2)
    for number in range(10):
        assert not device.queue.enable_notification()
        assert device.driver.report([(number, 0), (number + 100, 0)])
        device.acknowledge()
        assert device.driver.acknowledged()


def test_a_report_that_does_not_fit_is_refused_whole() -> None:
    device = Device(size=2)
    device.driver.report([(1, 0)])
    with pytest.raises(QueueFullError):
        device.driver.report([(number, 0) for number in range(33)])
    device.acknowledge()
    assert device.driver.acknowledged()


def test_a_device_that_gives_back_what_it_does_not_have_is_found_out() -> None:
    device = Device()
    device.driver.report([(1, 0)])
    device.queue.add_used(7, 0)
    with pytest.raises(VirtqueueError, match="gave back 7"):
        device.driver.acknowledged()
