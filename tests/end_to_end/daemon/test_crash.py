"""Daemons that are killed with chains in their hands, connections that drop, memory that changes under load: every
chain comes back exactly once, and what it asked for has been done."""

import os
import signal
import socket
import struct
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from guest.balloon.virtio_balloon import WANTED
from guest.vhost_user.frontend import Frontend
from protocol.memory import PAGE_SIZE, GuestAddress, UserAddress
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import InflightDescription, MemoryTable
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DaemonProcess, doomed_daemon, stall, unchanged_fds, until
from tests.harness.virtual_machine import (
    DATA_AT,
    GUEST_BASE,
    MIB,
    QUEUE_SIZE,
    USER_BASE,
    Client,
    Ram,
    TestQueue,
    VirtualMachine,
)

STATISTICS: Final = feature_mask(BalloonFeature.STATS_VQ)
INFLIGHT: Final = feature_mask(ProtocolFeature.INFLIGHT_SHMFD)
GET, SET = FrontendRequest.GET_INFLIGHT_FD, FrontendRequest.SET_INFLIGHT_FD


class InflightFile:
    """The inflight file as a front-end keeps it while back-ends come and go."""

    def __init__(self, machine: VirtualMachine) -> None:
        queues = len(machine.queues)
        wanted = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=queues, queue_size=QUEUE_SIZE)
        machine.client.send(build_message(GET, wanted))
        data, fds, _, _ = socket.recv_fds(machine.client.socket, 36, 4)
        request, flags, size, mmap_size, mmap_offset, num_queues, queue_size, _ = struct.unpack("<IIIQQHHI", data)
        assert (request, flags, size, num_queues, queue_size) == (GET, 5, 24, queues, QUEUE_SIZE)
        (self.fd,) = fds
        self.told = InflightDescription(
            mmap_size=mmap_size, mmap_offset=mmap_offset, num_queues=num_queues, queue_size=queue_size
        )
        assert os.fstat(self.fd).st_size == mmap_size

    def marks(self, index: int) -> int:
        """Return how many chains of a split queue are marked as in flight."""
        size = self.told.mmap_size // self.told.num_queues
        region = os.pread(self.fd, size, index * size)
        return sum(region[16 + 16 * entry] for entry in range(QUEUE_SIZE))

    def close(self) -> None:
        """Give it up."""
        os.close(self.fd)


def accept_inflight(machine: VirtualMachine) -> None:
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, machine.frontend.protocol_features | INFLIGHT) == 0


def start_tracked(machine: VirtualMachine) -> InflightFile:
    """Have a file made for a machine whose queues do not run yet, hand it over, and start them."""
    accept_inflight(machine)
    file = InflightFile(machine)
    assert machine.ask(SET, file.told, [file.fd]) == 0
    machine.set_memory()
    for queue in machine.queues:
        machine.start(queue)
    return file


def attach_again(
    machine: VirtualMachine, path: Path, file: InflightFile | None = None, *, base: int | None = None
) -> None:
    """Connect to a new back-end as QEMU does: everything anew, each ring from its used index (or ``base``)."""
    machine.client.close()
    machine.client, machine.frontend = Client(path), Frontend()
    machine.client.perform(machine.frontend.offer())
    machine.client.perform(machine.frontend.accept(machine.features))
    if file is not None:
        accept_inflight(machine)
        assert machine.ask(SET, file.told, [file.fd]) == 0
    machine.set_memory()
    for queue in machine.queues:
        start_at = queue.ring.used[1] if base is None else base
        machine.client.perform(machine.frontend.start_queue(queue.index, queue.setup, start_at))


def assert_nothing_more(queue: TestQueue, used: int) -> None:
    """Check that the device gave back ``used`` chains in the life of the ring, and none a second time."""
    assert queue.ring.used[1] == used
    assert queue.driver.get_used() is None


# -- connections that drop, daemons that die --------------------------------------------------------------------------


def test_report_outstanding_when_the_connection_drops_is_served_once(scene: Scene) -> None:
    machine = scene.machine()
    queue = machine.reporting
    machine.check_alive()
    for rounds in range(1, 4):
        machine.ram.touch(DATA_AT, 4 * MIB)
        stall(pid := scene.daemon.serving_pid)
        try:
            machine.submit([(DATA_AT, 2 * MIB)])
            machine.submit([(DATA_AT + 2 * MIB, 2 * MIB)])
            machine.client.socket.shutdown(socket.SHUT_RDWR)
        finally:
            os.kill(pid, signal.SIGCONT)
        scene.daemon.settled(machine.client.number)  # it may have served them before it noticed, or not
        number = machine.client.number + 1
        attach_again(machine, scene.daemon.socket_path)
        machine.client.number = scene.daemon.events.wait("connected", pid=os.getpid())["vm"]
        assert machine.client.number == number
        scene.expect(machine)
        done = queue.ring.used[1] - 1 - 2 * (rounds - 1)
        assert 0 <= done <= 2
        queue.collect(2)
        assert machine.ram.pages() == set()
        assert_nothing_more(queue, 1 + 2 * rounds)


@pytest.mark.parametrize("tracked", [False, True])
def test_daemon_killed_before_it_took_a_chain_leaves_it_to_its_successor(tmp_path: Path, tracked: bool) -> None:
    with ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            machine = stack.enter_context(VirtualMachine(daemon.socket_path, run=not tracked))
            file = start_tracked(machine) if tracked else None
            machine.check_alive()
            machine.ram.touch(DATA_AT, MIB)
            daemon.stall()
            machine.submit([(DATA_AT, MIB)])
        with DaemonProcess(tmp_path) as successor:
            attach_again(machine, successor.socket_path, file)
            machine.reporting.collect()
            assert machine.ram.pages() == set()
            assert_nothing_more(machine.reporting, 2)
            machine.check_alive()
            machine.client.close()
            successor.settled(1)
        if file is not None:
            assert [file.marks(queue.index) for queue in machine.queues] == [0] * len(machine.queues)
            file.close()


def test_chain_in_the_hands_of_a_daemon_that_is_killed_is_given_back_by_its_successor_once(tmp_path: Path) -> None:
    """The statistics queue's buffer is always in the device's hands: marked in the file, and not used yet."""
    with ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            machine = stack.enter_context(VirtualMachine(daemon.socket_path, run=False, wanted=WANTED | STATISTICS))
            file = start_tracked(machine)
            stack.callback(file.close)
            queue = machine.queue(BalloonQueue.STATS)
            machine.offer(BalloonQueue.STATS, struct.pack("<HQ", 4, 123))
            until(lambda: file.marks(queue.index) == 1, "the buffer is marked as in flight")
            daemon.events.wait("statistics", memfree=123)
            assert queue.ring.used[1] == 0
        assert file.marks(queue.index) == 1
        with DaemonProcess(tmp_path) as successor:
            attach_again(machine, successor.socket_path, file, base=1)  # not even the base has to be right
            successor.events.wait("statistics", memfree=123)
            assert queue.ring.used[1] == 0
            assert file.marks(queue.index) == 1
            queue.driver.add([], [(GUEST_BASE + DATA_AT, 1)])  # a second buffer has the first given back
            queue.kick()
            queue.collect()
            machine.check_alive()
            assert_nothing_more(queue, 1)
            assert file.marks(queue.index) == 1
            machine.client.close()
            successor.settled(1)


def test_daemons_killed_in_the_middle_of_their_work_lose_nothing(tmp_path: Path) -> None:
    """Chains of many discards, and a kill at any point of their service."""
    chains, rounds = 12, 4
    with ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            machine = stack.enter_context(VirtualMachine(daemon.socket_path, run=False))
            file = start_tracked(machine)
            stack.callback(file.close)
        queue, outstanding = machine.reporting, 0
        for number in range(rounds):
            with doomed_daemon(tmp_path) as daemon:
                attach_again(machine, daemon.socket_path, file)
                queue.collect(outstanding)
                assert machine.ram.pages() == set()
                assert_nothing_more(queue, number * chains)
                machine.ram.touch(DATA_AT, chains * MIB)
                for start in range(DATA_AT, DATA_AT + chains * MIB, MIB):
                    machine.submit([(at, 4 * PAGE_SIZE) for at in range(start, start + MIB, 4 * PAGE_SIZE)])
                wait_for_used(queue, number * chains)
            outstanding = chains - take_used(queue)


def test_packed_rings_go_on_where_the_file_says(tmp_path: Path) -> None:
    """A packed ring does not tell how far it was used: the file does, and the front-end's base is ignored."""
    chains, features = 12, ("--features", "packed=on")
    with ExitStack() as stack:
        with doomed_daemon(tmp_path, *features) as daemon:
            machine = stack.enter_context(VirtualMachine(daemon.socket_path, run=False, packed=True))
            file = start_tracked(machine)
            stack.callback(file.close)
            machine.check_alive()
        queue, outstanding = machine.reporting, 0
        for _ in range(3):
            with doomed_daemon(tmp_path, *features) as daemon:
                attach_again(machine, daemon.socket_path, file, base=0x8000_8000)
                queue.collect(outstanding)
                assert machine.ram.pages() <= {DATA_AT + PAGE_SIZE}
                assert take_used(queue) == 0
                machine.ram.touch(DATA_AT, chains * MIB)
                for start in range(DATA_AT, DATA_AT + chains * MIB, MIB):
                    machine.submit([(at, 4 * PAGE_SIZE) for at in range(start, start + MIB, 4 * PAGE_SIZE)])
                queue.collect()
            outstanding = chains - 1 - take_used(queue)


def wait_for_used(queue: TestQueue, before: int) -> None:
    """Wait until the device has used a chain more than ``before``; it may as well have used them all by now."""
    until(lambda: queue.ring.used[1] != before, "the daemon is at it")


def take_used(queue: TestQueue) -> int:
    """Take back what a daemon that is dead had used; return how many chains."""
    number = 0
    while queue.driver.get_used() is not None:
        number += 1
    return number


# -- hostile inflight files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "version", "short"])
def test_hostile_inflight_file_stops_its_own_queues_only(scene: Scene, kind: str) -> None:
    machine = scene.machine(run=False)
    accept_inflight(machine)
    told = InflightFile(machine)
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, told.told.mmap_size)
    size = told.told.mmap_size // told.told.num_queues
    for index in range(told.told.num_queues):
        if kind == "random":
            os.pwrite(fd, b"\x01" * size, index * size)
        else:
            os.pwrite(fd, struct.pack("<QHH", 0, 2 if kind == "version" else 1, QUEUE_SIZE), index * size)
    assert machine.ask(SET, told.told, [fd]) == 0
    if kind == "short":
        os.ftruncate(fd, 100)
    machine.set_memory()
    messages = machine.reporting.messages()
    enable = messages.pop(FrontendRequest.SET_VRING_ENABLE)
    machine.ask_each(messages)
    assert machine.ask(FrontendRequest.SET_VRING_ENABLE, *enable) == 1
    stopped = str(machine.reporting.index)
    scene.expect(machine, ("queue_stopped", stopped), ("message_refused", "SET_VRING_ENABLE"))
    assert machine.ask(SET, told.told, [told.fd]) == 0  # with a good one it goes on
    machine.check_alive()
    os.close(fd)
    told.close()


def test_inflight_files_that_are_invalid_are_refused(scene: Scene) -> None:
    machine = scene.machine(run=False)
    accept_inflight(machine)
    told = InflightFile(machine)
    reading, writing = os.pipe()
    short = os.memfd_create("short")
    assert machine.ask(FrontendRequest.GET_QUEUE_NUM) is not None  # the file that was handed out is closed there now
    with unchanged_fds(scene.daemon.serving_pid):
        for fd in (reading, writing, short):
            assert machine.ask(SET, told.told, [fd]) == 1
            os.close(fd)
    scene.expect(machine, *[("message_refused", "SET_INFLIGHT_FD")] * 3)
    told.close()


# -- memory that changes under load -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tracked", [False, True])
def test_memory_that_comes_and_goes_under_load_costs_no_chain(scene: Scene, tracked: bool) -> None:
    """Hot-plugged regions, the same table again, an empty table, and back, each with chains outstanding."""
    machine = scene.machine(run=not tracked)
    file = start_tracked(machine) if tracked else None
    more = Ram()
    added = replace(
        machine.region,
        guest_address=GuestAddress(GUEST_BASE + 4 * machine.ram.size),
        user_address=UserAddress(USER_BASE + 4 * machine.ram.size),
    )
    nothing = MemoryTable(())
    rounds = 8
    for _ in range(rounds):
        machine.ram.touch(DATA_AT, 6 * MIB)
        more.touch(0, MIB)
        machine.submit([(DATA_AT, MIB)])
        assert machine.ask(FrontendRequest.ADD_MEM_REG, added, [more.fd]) == 0
        machine.submit([(DATA_AT + MIB, MIB), (4 * machine.ram.size, MIB)])
        assert (
            machine.ask(FrontendRequest.SET_MEM_TABLE, MemoryTable((machine.region, added)), [machine.ram.fd, more.fd])
            == 0
        )
        machine.submit([(DATA_AT + 2 * MIB, MIB), (DATA_AT + 3 * MIB, MIB)])
        machine.reporting.collect(3)
        assert machine.ask(FrontendRequest.REM_MEM_REG, added) == 0
        assert machine.ask(FrontendRequest.SET_MEM_TABLE, nothing) == 0
        machine.submit([(DATA_AT + 4 * MIB, 2 * MIB)])
        machine.set_memory()
        machine.reporting.collect()
        assert machine.ram.pages() == more.pages(0) == set()
    assert_nothing_more(machine.reporting, 4 * rounds)
    parked = [("queue_stopped", str(queue.index)) for queue in machine.queues]
    scene.expect(machine, *parked * rounds)
    more.close()
    if file is not None:
        assert file.marks(machine.reporting.index) == 0
        file.close()
