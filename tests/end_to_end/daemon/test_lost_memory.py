"""Memory that is cut short below running rings: these rings stop, and the daemon and the other machines go on."""

import os
import struct
from pathlib import Path

from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_ring import VIRTQ_DESC_F_WRITE
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DaemonProcess
from tests.harness.virtual_machine import GUEST_BASE, RAM_BYTES, USER_BASE, WANTED, Ram, VirtualMachine

CUT_SHORT = "the memory below the ring was cut short"
DIRECT = WANTED & ~feature_mask(FeatureBit.RING_INDIRECT_DESC, FeatureBit.RING_EVENT_IDX)


def test_lost_memory_stops_all_rings_of_its_machine_alone(scene: Scene) -> None:
    machine = scene.machine(ram=Ram(sealed=False))
    machine.check_alive()
    os.ftruncate(machine.ram.fd, 0)
    for queue in machine.queues:
        queue.kick()
    number = machine.client.number
    stopped = scene.daemon.events.wait_for_count("queue_stopped", len(machine.queues), vm=number)
    assert {(event["queue"], event["reason"]) for event in stopped} == {(n, CUT_SHORT) for n in range(3)}
    scene.neighbour.check_alive()
    # In any order: a worker may still have been looking at its ring.
    scene.expect(machine, *[("queue_stopped", str(event["queue"])) for event in stopped])
    # The session goes on, and with its memory back the rings can begin anew.
    os.ftruncate(machine.ram.fd, RAM_BYTES)
    for queue in machine.queues:
        assert machine.ask(FrontendRequest.GET_VRING_BASE, VringState(queue.index, 0)) is not None
        queue.renew()
        machine.start(queue)
    machine.check_alive()


def test_packed_rings_are_lost_likewise(tmp_path: Path) -> None:
    with (
        DaemonProcess(tmp_path, "--features", "packed=on") as daemon,
        VirtualMachine(daemon.socket_path, ram=Ram(sealed=False), packed=True) as machine,
        VirtualMachine(daemon.socket_path, packed=True) as neighbour,
    ):
        machine.check_alive()
        os.ftruncate(machine.ram.fd, 0)
        machine.reporting.kick()
        assert daemon.events.wait("queue_stopped")["reason"] == CUT_SHORT
        neighbour.check_alive()


def test_rest_of_a_lost_ring_has_nothing_discarded(scene: Scene) -> None:
    """Zeros in place of an index can make a chain out of an old descriptor. Its memory may be in use by now."""
    machine = scene.machine(ram=Ram(sealed=False), wanted=DIRECT, run=False)
    machine.set_memory()
    data = Ram()
    data.touch(0, 4 * PAGE_SIZE)
    beyond = MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE + RAM_BYTES), size=data.size, user_address=UserAddress(0), mmap_offset=0
    )
    assert machine.ask(FrontendRequest.ADD_MEM_REG, beyond, [data.fd]) == 0
    queue = machine.reporting
    old = struct.pack("<QIHH", beyond.guest_address, PAGE_SIZE, VIRTQ_DESC_F_WRITE, 0)
    machine.ram.map[queue.offset : queue.offset + len(old)] = old
    queue.ring.avail[1] = queue.ring.used[1] = 0xFFFF  # after this, an index of zero means one more chain
    machine.ask_each(queue.messages(base=0xFFFF))
    os.ftruncate(machine.ram.fd, queue.setup.available - USER_BASE)
    queue.kick()
    assert scene.daemon.events.wait("queue_stopped", vm=machine.client.number)["reason"] == CUT_SHORT
    scene.expect(machine, ("queue_stopped", str(queue.index)))
    assert data.pages(0) == {number * PAGE_SIZE for number in range(4)}
    data.close()
