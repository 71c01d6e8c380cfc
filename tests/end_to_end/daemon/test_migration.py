"""Virtual machines that move: the dirty log of a living device, and its state from one daemon to the next."""

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from guest.vhost_user.frontend import Frontend
from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import DeviceConfig, DeviceStateTransfer, LogDescription, VringAddress, VringState
from protocol.virtio import LOG_ALL, PROTOCOL_FEATURES, feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DEADLINE, DaemonProcess, open_fds, unchanged_fds, until
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, MIB, Client, TestQueue, VirtualMachine

MOVING: Final = feature_mask(ProtocolFeature.LOG_SHMFD, ProtocolFeature.DEVICE_STATE)
LOG_BYTES: Final = (GUEST_BASE + 16 * MIB) // PAGE_SIZE // 8
SAVE, LOAD = 0, 1


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Log:
    """A dirty log as a front-end has it: a memory file, of which it takes the bits that are set."""

    def __init__(self, resources: ExitStack, size: int = LOG_BYTES) -> None:
        self.fd = os.memfd_create("dirty-log")
        resources.callback(os.close, self.fd)
        os.ftruncate(self.fd, size)
        self.size = size

    def take(self) -> set[int]:
        """Return the guest addresses of the pages that are marked, and clear the marks."""
        found: set[int] = set()
        at = 0
        while True:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                return found
            data = os.pread(self.fd, PAGE_SIZE, at)
            os.pwrite(self.fd, bytes(len(data)), at)
            found |= {
                (8 * (at + i) + bit) * PAGE_SIZE
                for i, byte in enumerate(data)
                if byte
                for bit in range(8)
                if byte >> bit & 1
            }
            at += PAGE_SIZE


def address_of(queue: TestQueue, **changes: Any) -> VringAddress:
    payload, _ = queue.messages()[FrontendRequest.SET_VRING_ADDR]
    assert isinstance(payload, VringAddress)
    return replace(payload, **changes)


def moving_machine(scene: Scene, **options: Any) -> VirtualMachine:
    """Return a machine whose session can be moved."""
    machine = scene.machine(**options)
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, machine.frontend.protocol_features | MOVING) == 0
    return machine


def start_logging(machine: VirtualMachine, log: Log, *queues: TestQueue, used: int = 0x6000) -> None:
    """Do as QEMU does when a migration begins: the log, the feature, then each ring's address again."""
    assert machine.ask(FrontendRequest.SET_LOG_BASE, LogDescription(log.size, 0), [log.fd]) == 0
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features | PROTOCOL_FEATURES | LOG_ALL) == 0
    for queue in queues:
        address = address_of(queue, flags=1, log=GUEST_BASE + queue.offset + used)
        assert machine.ask(FrontendRequest.SET_VRING_ADDR, address) == 0


def stop(machine: VirtualMachine, queue: TestQueue) -> None:
    """Stop a queue; what it has written is in the log now."""
    state = machine.ask(FrontendRequest.GET_VRING_BASE, VringState(queue.index, 0))
    assert isinstance(state, VringState)
    queue.base = state.num


def go_on(machine: VirtualMachine, queue: TestQueue) -> None:
    """Start a stopped queue where it was, its used ring logged or not as it was."""
    messages = queue.messages(base=queue.base)
    del messages[FrontendRequest.SET_VRING_ADDR]
    machine.ask_each(messages)


def settle(machine: VirtualMachine, queue: TestQueue) -> None:
    """Stop a queue and have it go on."""
    stop(machine, queue)
    go_on(machine, queue)


# -- the dirty log ----------------------------------------------------------------------------------------------------


def test_pages_of_the_used_ring_are_marked_and_no_others(scene: Scene, resources: ExitStack) -> None:
    machine, log = moving_machine(scene), Log(resources)
    machine.check_alive()
    start_logging(machine, log, *machine.queues)
    queue = machine.reporting
    for _ in range(3):
        settle(machine, queue)  # a ring has been marked for sure once it has been stopped
        log.take()
        machine.ram.touch(DATA_AT, MIB)
        machine.report((DATA_AT, MIB))
        stop(machine, queue)
        assert log.take() == {GUEST_BASE + queue.offset + 0x6000}
        go_on(machine, queue)
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features | PROTOCOL_FEATURES) == 0
    settle(machine, queue)
    log.take()
    machine.check_alive()
    stop(machine, queue)
    assert log.take() == set()


def test_used_ring_of_several_pages_is_marked_where_it_was_written(scene: Scene, resources: ExitStack) -> None:
    """The log address decides, as for a used ring that begins near the end of a page."""
    machine, log = moving_machine(scene), Log(resources)
    start_logging(machine, log, machine.reporting, used=0x6000 + PAGE_SIZE - 8)
    machine.check_alive()
    stop(machine, machine.reporting)
    first = GUEST_BASE + machine.reporting.offset + 0x6000
    assert log.take() == {first, first + PAGE_SIZE}  # the index here, the first element there


def test_log_that_is_replaced_or_cut_short_does_no_harm(scene: Scene, resources: ExitStack) -> None:
    machine, first, second = moving_machine(scene), Log(resources), Log(resources)
    start_logging(machine, first, machine.reporting)
    held = sorted(open_fds(scene.daemon.pid).values())
    start_logging(machine, second, machine.reporting)
    assert sorted(open_fds(scene.daemon.pid).values()) == held
    first.take()
    machine.check_alive()
    settle(machine, machine.reporting)
    assert first.take() == set()
    assert len(second.take()) == 1
    bad = [LogDescription((1 << 64) - 1, 2), LogDescription(0, 0), LogDescription(LOG_BYTES + 1, 0)]
    for description in bad:
        assert machine.ask(FrontendRequest.SET_LOG_BASE, description, [first.fd]) == 1
    machine.check_alive()
    settle(machine, machine.reporting)
    assert len(second.take()) == 1
    scene.expect(machine, *[("message_refused", "SET_LOG_BASE")] * len(bad))


def test_log_call_is_signalled(scene: Scene, resources: ExitStack) -> None:
    machine, log = moving_machine(scene), Log(resources)
    call = os.eventfd(0, os.EFD_NONBLOCK)
    resources.callback(os.close, call)
    assert machine.ask(FrontendRequest.SET_LOG_FD, fds=[call]) == 0
    start_logging(machine, log, machine.reporting)
    machine.check_alive()
    assert select.select([call], [], [], DEADLINE)[0] == [call]
    assert os.eventfd_read(call) > 0
    for _ in range(50):  # replaced while the log is written: a late signal must not reach a file of the same number
        machine.submit([(DATA_AT, PAGE_SIZE)])
        assert machine.ask(FrontendRequest.SET_LOG_FD, fds=[call]) == 0
        machine.reporting.collect()
    machine.check_alive()


def test_log_moves_on_with_the_memory_table(scene: Scene, resources: ExitStack) -> None:
    machine, log = moving_machine(scene), Log(resources)
    start_logging(machine, log, machine.reporting)
    machine.set_memory()
    machine.check_alive()
    stop(machine, machine.reporting)
    assert log.take() == {GUEST_BASE + machine.reporting.offset + 0x6000}


def test_packed_ring_is_marked_where_its_descriptors_and_its_event_lie(tmp_path: Path, resources: ExitStack) -> None:
    with DaemonProcess(tmp_path, "--features", "packed=on") as daemon:
        with VirtualMachine(daemon.socket_path, packed=True) as machine:
            assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, machine.frontend.protocol_features | MOVING) == 0
            log = Log(resources)
            start_logging(machine, log, machine.reporting)
            machine.check_alive()
            start = GUEST_BASE + machine.reporting.offset
            marked = set[int]()

            def is_marked() -> bool:
                marked.update(log.take())
                return marked == {start, start + 0x6000}

            until(is_marked, "the used descriptor and the event area, which is written when the ring is empty")
        daemon.settled(1)


# -- the device's state -----------------------------------------------------------------------------------------------


def stop_all(machine: VirtualMachine) -> None:
    for queue in machine.queues:
        stop(machine, queue)


def save(machine: VirtualMachine) -> bytes:
    """Return the device's state, as a front-end takes it through a pipe."""
    reading, writing = os.pipe()
    assert machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(SAVE, 0), [writing]) == 0x100
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        data = file.read()
    assert machine.ask(FrontendRequest.CHECK_DEVICE_STATE) == 0
    return data


def load(machine: VirtualMachine, data: bytes) -> object:
    """Give the device a state; return the answer to CHECK_DEVICE_STATE."""
    reading, writing = os.pipe()
    assert machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(LOAD, 0), [reading]) == 0x100
    os.close(reading)
    with os.fdopen(writing, "wb") as file:
        file.write(data)
    return machine.ask(FrontendRequest.CHECK_DEVICE_STATE)


def config_of(machine: VirtualMachine) -> BalloonConfig:
    answer = machine.ask(FrontendRequest.GET_CONFIG, DeviceConfig(offset=0, flags=0, data=bytes(16)))
    assert isinstance(answer, DeviceConfig)
    return BalloonConfig.parse(answer.data)


def write_actual(machine: VirtualMachine, pages: int) -> None:
    data = pages.to_bytes(4, "little")
    assert machine.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=4, flags=0, data=data)) == 0


@contextmanager
def two_daemons(directory: Path) -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    source, destination = directory / "source", directory / "destination"
    known = ("--guest-memory", "1G")  # the state is looked at before the memory table has come
    source.mkdir()
    destination.mkdir()
    with DaemonProcess(source, "--balloon", "4M") as first, DaemonProcess(destination, *known) as second:
        yield first, second


def test_machine_goes_on_at_another_daemon_as_it_was(tmp_path: Path) -> None:
    with two_daemons(tmp_path) as (source, destination):
        machine = VirtualMachine(source.socket_path)
        assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, machine.frontend.protocol_features | MOVING) == 0
        machine.check_alive()
        write_actual(machine, 1000)
        stop_all(machine)
        data = save(machine)
        document = json.loads(data)
        assert (document["num_pages"], document["actual"], document["counters"]["reports"]) == (1024, 1000, 1)
        machine.client.close()
        source.settled(1)

        machine.client, machine.frontend = Client(destination.socket_path), Frontend()
        machine.client.perform(machine.frontend.offer())
        machine.client.perform(machine.frontend.accept(machine.features))
        machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, machine.frontend.protocol_features | MOVING)
        assert config_of(machine) == BalloonConfig()
        assert load(machine, data) == 0
        assert config_of(machine) == BalloonConfig(num_pages=1024, actual=1000)
        destination.events.wait("state_loaded", target_bytes=4 * MIB, actual_bytes=1000 * PAGE_SIZE)
        machine.set_memory()
        for queue in machine.queues:
            machine.client.perform(machine.frontend.start_queue(queue.index, queue.setup, queue.base))
        machine.check_alive()
        assert machine.ask(FrontendRequest.CHECK_DEVICE_STATE) == 1  # not while rings run
        machine.client.close()
        assert destination.settled(1)["reports"] == 2
        for queue in machine.queues:
            queue.close()
        machine.ram.close()


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"{}", b"x" * 100_000, b'{"format": "vhost-user-balloon device state"}']
)
def test_garbage_as_a_state_is_refused_without_a_change(scene: Scene, data: bytes) -> None:
    machine = moving_machine(scene)
    before = config_of(machine)
    stop_all(machine)
    reading, writing = socket.socketpair()
    with writing, reading:
        assert (
            machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(LOAD, 0), [reading.fileno()]) == 0x100
        )
        reading.close()
        try:
            writing.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            assert len(data) > PAGE_SIZE
    assert machine.ask(FrontendRequest.CHECK_DEVICE_STATE) == 1
    assert config_of(machine) == before
    scene.expect(machine, ("message_refused", "CHECK_DEVICE_STATE"))


def test_peer_that_neither_reads_nor_writes_does_not_delay_others(scene: Scene) -> None:
    machine = moving_machine(scene)
    stop_all(machine)
    reading, writing = os.pipe()
    with unchanged_fds(scene.daemon.pid):
        for _ in range(3):
            answer = machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(LOAD, 0), [reading])
            assert answer == 0x100
            scene.neighbour.check_alive()
        assert load(machine, b"") == 1  # which gives up the one before
    assert machine.ask(FrontendRequest.CHECK_DEVICE_STATE) == 1
    scene.expect(machine, *[("message_refused", "CHECK_DEVICE_STATE")] * 2)
    # The last one is still waiting when the connection ends.
    assert machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(LOAD, 0), [reading]) == 0x100
    machine.client.close()
    scene.end_of(machine)
    os.close(reading)
    os.close(writing)


def test_state_is_not_passed_while_a_ring_runs(scene: Scene) -> None:
    machine = moving_machine(scene)
    reading, writing = os.pipe()
    with unchanged_fds(scene.daemon.pid):
        for direction, fd in ((SAVE, writing), (LOAD, reading)):
            assert machine.ask(FrontendRequest.SET_DEVICE_STATE_FD, DeviceStateTransfer(direction, 0), [fd]) == 0x101
    os.close(reading)
    os.close(writing)
    machine.check_alive()
    scene.expect(machine, *[("message_refused", "SET_DEVICE_STATE_FD")] * 2)
