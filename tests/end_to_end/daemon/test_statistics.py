"""The statistics queue and the free page queue of a real daemon, by drivers that do what they should not."""

import struct
from collections.abc import Iterator

import pytest

from host.events.event_limit import EVENTS_PER_SECOND
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.harness.processes import DaemonProcess
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, RAM_BYTES, WANTED, VirtualMachine

P = PAGE_SIZE
STATS, FREE_PAGE = BalloonQueue.STATS, BalloonQueue.FREE_PAGE
WITH_BOTH = WANTED | feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that also offers hinting, and asks for no statistics by itself."""
    directory = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(directory, "--features", "free-page-hint=on", "--statistics-interval", "0") as daemon:
        yield daemon


@pytest.fixture
def machine(daemon: DaemonProcess) -> Iterator[VirtualMachine]:
    """A machine with all five queues, which must still work when its test is over."""
    with VirtualMachine(daemon.socket_path, wanted=WITH_BOTH) as machine:
        machine.client.number = daemon.events.wait("connected")["vm"]
        yield machine
        machine.check_alive()


def statistics(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in entries)


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b"", {}),
        (b"\x04", {}),
        (statistics((4, 1))[:9], {}),
        (statistics((4, 1)) + b"odd", {"memfree": 1}),
        (statistics((5, 2), (4, 1), (4, 2**64 - 1)), {"memfree": 2**64 - 1, "memtot": 2}),
        (statistics(*[(0xFFFF, 0)] * 100, (15, 7)), {"direct_reclaim": 7}),
    ],
)
def test_statistics_of_any_shape_are_told_and_held(
    daemon: DaemonProcess, machine: VirtualMachine, data: bytes, values: dict[str, int]
) -> None:
    machine.offer(STATS, data, [] if data else [(DATA_AT, P)])  # a chain without any buffer cannot be made
    event = daemon.events.wait("statistics", vm=machine.client.number)
    assert {name: value for name, value in event.items() if name not in ("t", "time", "event", "vm")} == values
    index = machine.queue(STATS).index
    assert machine.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0)) == VringState(index, 0)
    assert machine.queue(STATS).ring.used[1] == 0


def test_further_buffer_sends_the_last_one_back(daemon: DaemonProcess, machine: VirtualMachine) -> None:
    queue = machine.queue(STATS)
    for number in range(5):
        machine.offer(STATS, statistics((4, number)))
        daemon.events.wait("statistics", vm=machine.client.number, memfree=number)
    assert len(queue.collect(4)) == 4
    assert queue.ring.used[1] == 4


def test_statistics_outside_the_memory_break_their_ring_alone(daemon: DaemonProcess, machine: VirtualMachine) -> None:
    queue = machine.queue(STATS)
    queue.driver.add([(GUEST_BASE + RAM_BYTES - 4, 10)], ())
    queue.kick()
    daemon.events.wait("queue_stopped", vm=machine.client.number, queue=queue.index)


@pytest.mark.parametrize("command", [b"", struct.pack("<I", 0), struct.pack("<I", 1), struct.pack("<I", 2), b"\2\0\0"])
def test_hints_outside_a_round_are_acknowledged_and_kept(
    daemon: DaemonProcess, machine: VirtualMachine, command: bytes
) -> None:
    machine.ram.touch(DATA_AT, 4 * P)
    before = machine.ram.pages()
    for data in (command, b""):
        machine.offer(FREE_PAGE, data, [(DATA_AT, P), (DATA_AT + 2 * P, P)])
        machine.queue(FREE_PAGE).collect()
    assert machine.ram.pages() == before
    assert not machine.ram.spoilt_pages()
    daemon.events.wait_for_count("refused", 2, vm=machine.client.number, reason="stale_hint", ranges=2)


def test_driver_that_goes_wrong_without_end_does_not_flood_the_events(daemon: DaemonProcess) -> None:
    """Events that are held back are counted."""
    rounds, burst = 40, 16
    with VirtualMachine(daemon.socket_path, wanted=WITH_BOTH) as machine:
        number = daemon.events.wait("connected")["vm"]
        for _ in range(rounds):
            for _ in range(burst):
                machine.offer(FREE_PAGE, b"", [(DATA_AT, P)])
            machine.queue(FREE_PAGE).collect(burst)
        machine.check_alive()
    assert daemon.settled(number)["refused"] == {"stale_hint": rounds * burst}
    hints = daemon.events.all("hint", vm=number)
    assert len(hints) == rounds * burst
    refused = len(daemon.events.all("refused", vm=number))
    assert refused <= EVENTS_PER_SECOND * (hints[-1]["t"] - hints[0]["t"] + 2)
    assert refused + sum(event["count"] for event in daemon.events.all("suppressed", vm=number)) == rounds * burst


def test_statistics_of_a_new_driver_are_told_although_they_say_what_the_last_ones_said(
    daemon: DaemonProcess, machine: VirtualMachine
) -> None:
    vm = machine.client.number
    machine.offer(STATS, statistics((4, 5)))
    daemon.events.wait("statistics", vm=vm, memfree=5)
    machine.ask(FrontendRequest.RESET_DEVICE)
    machine.client.perform(machine.frontend.accept(machine.features))
    for queue in machine.queues:
        queue.renew()
        machine.start(queue)
    machine.offer(STATS, statistics((4, 5)))
    daemon.events.wait_for_count("statistics", 2, vm=vm, memfree=5)
