"""The daemon over packed rings and in-order rings: served, stopped, resumed, moved, and broken alone."""

import os
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE
from protocol.packed_ring import FRESH_BASE, VIRTQ_DESC_F_AVAIL, PackedRing
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.harness.processes import DaemonProcess
from tests.harness.virtual_machine import (
    DATA_AT,
    GUEST_BASE,
    QUEUE_SIZE,
    WANTED,
    Client,
    TestQueue,
    VirtualMachine,
)

NEXT, WRITE, INDIRECT = 1, 2, 4


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    directory: Path = tmp_path_factory.mktemp("packed")
    with DaemonProcess(directory, "--features", "packed=on,in-order=on") as daemon:
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def client(daemon: DaemonProcess) -> Client:
    client = Client(daemon.socket_path)
    client.number = daemon.events.wait("connected", pid=os.getpid())["vm"]
    return client


def packed_ring(queue: TestQueue) -> PackedRing:
    """Return the views of a queue that is packed."""
    assert isinstance(queue.views, PackedRing)
    return queue.views


KINDS = [
    (packed, in_order, WANTED & ~feature_mask(*without))
    for packed, in_order, without in product(
        (False, True),
        (False, True),
        ((), (FeatureBit.RING_INDIRECT_DESC,), (FeatureBit.RING_EVENT_IDX,)),
    )
]


@pytest.mark.parametrize(("packed", "in_order", "wanted"), KINDS)
def test_reports_are_served_lap_after_lap(client: Client, packed: bool, in_order: bool, wanted: int) -> None:
    with VirtualMachine(client, packed=packed, in_order=in_order, wanted=wanted) as machine:
        queue = machine.reporting
        for lap in range(5):
            machine.ram.touch(DATA_AT, 30 * PAGE_SIZE)
            for number in range(0, 30, 3):
                ranges = [(GUEST_BASE + DATA_AT + (number + i) * PAGE_SIZE, PAGE_SIZE) for i in range(3)]
                queue.driver.add((), ranges)
                if queue.driver.needs_kick():
                    queue.kick()
            assert len(queue.collect(10)) == 10
            assert machine.ram.pages() == set(), lap
        for queue_index in (0, 1):
            machine.send_pfns(queue_index, (GUEST_BASE >> 12).to_bytes(4, "little"))
        machine.check_alive()


@pytest.mark.parametrize("packed", [False, True])
def test_statistics_in_order_are_held_and_go_back_in_turn(daemon: DaemonProcess, client: Client, packed: bool) -> None:
    """A second buffer sends the first one back; the one that is held when the ring stops is found again."""
    wanted = WANTED | feature_mask(BalloonFeature.STATS_VQ)
    with VirtualMachine(client, packed=packed, in_order=True, wanted=wanted) as machine:
        queue = machine.queue(BalloonQueue.STATS)

        def free_memory() -> int:
            return int(daemon.events.wait("statistics", vm=client.number)["memfree"])

        machine.offer(BalloonQueue.STATS, struct.pack("<HQ", 4, 0))
        assert free_memory() == 0
        for number in range(1, 10):
            assert queue.driver.get_used() is None
            machine.offer(BalloonQueue.STATS, struct.pack("<HQ", 4, number))
            assert free_memory() == number
            assert len(queue.collect()) == 1
        answer = machine.ask(FrontendRequest.GET_VRING_BASE, VringState(queue.index, 0))
        assert isinstance(answer, VringState)
        machine.ask_each(queue.messages(base=answer.num))  # found again, without an event
        machine.offer(BalloonQueue.STATS, struct.pack("<HQ", 4, 7))
        assert free_memory() == 7
        assert len(queue.collect()) == 1
        machine.check_alive()


def test_full_ring_through_many_laps(client: Client) -> None:
    with VirtualMachine(client, packed=True) as machine:
        queue = machine.reporting
        for _ in range(20):
            for _ in range(QUEUE_SIZE):
                queue.driver.add((), [(GUEST_BASE + DATA_AT, PAGE_SIZE)])
            queue.kick()
            queue.collect(QUEUE_SIZE)
        machine.check_alive()


def test_ring_of_any_size(client: Client) -> None:
    with VirtualMachine(client, packed=True, run=False) as machine:
        machine.set_memory()
        machine.queues[2].close()
        machine.queues[2] = TestQueue(machine.ram, 2, machine.features, 100)
        machine.start(machine.reporting)
        for _ in range(3):
            for _ in range(100):
                machine.reporting.driver.add((), [(GUEST_BASE + DATA_AT, PAGE_SIZE)])
            machine.reporting.kick()
            machine.reporting.collect(100)
        machine.check_alive()


def test_fresh_ring_may_be_told_base_zero_or_the_right_one(client: Client) -> None:
    with VirtualMachine(client, packed=True, run=False) as machine:
        machine.set_memory()
        machine.ask_each(machine.reporting.messages(base=0))
        machine.check_alive()
        machine.reporting.renew()
        machine.ask_each(machine.reporting.messages(base=FRESH_BASE))
        machine.check_alive()


@pytest.mark.parametrize("reports", [0, 1, QUEUE_SIZE - 1, QUEUE_SIZE, QUEUE_SIZE + 1, 2 * QUEUE_SIZE])
def test_stopped_ring_says_where_it_is_and_goes_on_there(client: Client, reports: int) -> None:
    with VirtualMachine(client, packed=True, wanted=WANTED) as machine:
        for _ in range(reports):
            machine.report((DATA_AT, PAGE_SIZE))
        answer = machine.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
        laps, index = divmod(reports, QUEUE_SIZE)
        position = index | (0 if laps % 2 else 0x8000)
        assert answer == VringState(2, position | position << 16)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.ask_each(machine.reporting.messages(base=position | position << 16))
        machine.reporting.collect()
        machine.check_alive()


def test_base_outside_the_ring_is_refused_for_going_on(daemon: DaemonProcess, client: Client) -> None:
    with VirtualMachine(client, packed=True, run=False) as machine:
        machine.set_memory()
        messages = machine.reporting.messages(base=QUEUE_SIZE | FRESH_BASE)
        answers = [machine.client.ask(request, *rest) for request, rest in messages.items()]
        assert answers[-1] == 1
        reason = daemon.events.wait("queue_stopped", vm=client.number)["reason"]
        assert "is not a place in a packed ring of 128" in reason
        machine.ask_each(machine.reporting.messages())
        machine.check_alive()


BROKEN = {
    "a list in part": ([(0, NEXT | WRITE)], "descriptor 1 of a list is not available"),
    "indirect in a list": ([(0, NEXT | WRITE), (0, INDIRECT)], "an indirect descriptor in a list"),
    "a table of no whole descriptors": ([(0, INDIRECT)], "an indirect table of 4104 bytes is not"),
}


@pytest.mark.parametrize(("descriptors", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_ring_stops_alone(
    daemon: DaemonProcess, client: Client, descriptors: list[tuple[int, int]], reason: str
) -> None:
    with VirtualMachine(client, packed=True) as machine:
        ring = packed_ring(machine.reporting)
        for index, (buffer_id, flags) in reversed(list(enumerate(descriptors))):
            ring.write_descriptor(index, GUEST_BASE + DATA_AT, PAGE_SIZE + (8 if flags & INDIRECT else 0), buffer_id)
            ring.halves[8 * index + 7] = flags | VIRTQ_DESC_F_AVAIL
        machine.reporting.kick()
        assert reason in daemon.events.wait("queue_stopped", vm=client.number)["reason"]
        machine.send_pfns(0, (GUEST_BASE >> 12).to_bytes(4, "little"))
        machine.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
        ring.release()
        machine.reporting.renew()
        machine.start(machine.reporting)
        machine.check_alive()


def test_memory_that_its_driver_gave_up_is_left_alone(client: Client) -> None:
    with VirtualMachine(client, packed=True) as machine:
        for _ in range(3):
            machine.report((DATA_AT, PAGE_SIZE))
        machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(2, 0))
        garbage = os.urandom(64) * (0x8000 // 64)
        machine.ram.map[machine.reporting.offset : machine.reporting.offset + 0x8000] = garbage
        machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(2, True), [machine.reporting.call_fd])
        machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(2, 1))
        machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(2, 0))
        assert machine.ram.map[machine.reporting.offset : machine.reporting.offset + 0x8000] == garbage
