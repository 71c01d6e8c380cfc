"""The memory table: refusals, the state that is kept then, and running rings when it changes."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import MemoryTable
from protocol.virtio import feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import open_fds, unchanged_fds
from tests.harness.virtual_machine import (
    DATA_AT,
    GUEST_BASE,
    MIB,
    RAM_BYTES,
    USER_BASE,
    Client,
    Ram,
    VirtualMachine,
)

SET_MEM_TABLE = FrontendRequest.SET_MEM_TABLE
ADD = FrontendRequest.ADD_MEM_REG
REMOVE = FrontendRequest.REM_MEM_REG
SLOTS = feature_mask(ProtocolFeature.REPLY_ACK, ProtocolFeature.CONFIGURE_MEM_SLOTS)
TOP = 1 << 64


def region(guest: int = GUEST_BASE, size: int = RAM_BYTES, user: int = USER_BASE, offset: int = 0) -> MemoryRegion:
    return MemoryRegion(
        guest_address=GuestAddress(guest), size=size, user_address=UserAddress(user), mmap_offset=offset
    )


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def closing(resources: ExitStack, fd: int) -> int:
    resources.callback(os.close, fd)
    return fd


def assert_memory_kept(scene: Scene, machine: VirtualMachine) -> None:
    """Check that the refused table changed nothing, not even for the rings that run."""
    machine.check_alive()
    scene.expect(machine, ("message_refused", "SET_MEM_TABLE"))
    assert len(scene.daemon.events.all("memory", vm=machine.client.number)) == 1


@pytest.mark.parametrize(
    ("regions", "fds"),
    [
        ([region(), region(guest=0, user=0)], 1),
        ([region()], 2),
        ([region()], 0),
        ([], 1),
        ([region(size=0)], 1),
        ([region(guest=TOP - MIB)], 1),
        ([region(user=TOP - MIB)], 1),
        ([region(offset=TOP - MIB)], 1),
        ([region(size=RAM_BYTES + 1)], 1),
        ([region(offset=PAGE_SIZE)], 1),
        ([region(size=MIB), region(guest=GUEST_BASE + MIB - 1, size=MIB, user=0)], 2),
        ([region(size=MIB), region(guest=0, size=MIB, user=USER_BASE + MIB - 1)], 2),
        ([region(guest=i * MIB, size=MIB, user=i * MIB) for i in range(9)], 9),
    ],
)
def test_table_that_makes_no_sense_keeps_the_old_one(scene: Scene, regions: list[MemoryRegion], fds: int) -> None:
    machine = scene.machine()
    with unchanged_fds(scene.daemon.pid):
        assert machine.ask(SET_MEM_TABLE, MemoryTable(tuple(regions)), [machine.ram.fd] * fds) == 1
    assert_memory_kept(scene, machine)


def test_table_shorter_than_it_says(scene: Scene) -> None:
    machine = scene.machine()
    data = build_message(SET_MEM_TABLE, MemoryTable((region(),)), need_reply=True)
    machine.client.send(data[:8] + b"\x20\0\0\0" + data[12:44], [machine.ram.fd])
    assert machine.client.reply().payload == 1
    assert_memory_kept(scene, machine)


def test_table_padded_to_72_bytes_is_taken(scene: Scene) -> None:
    """User Mode Linux before 6.13 sends the C structure with room for two regions and one in it."""
    machine = scene.machine(run=False)
    data = build_message(SET_MEM_TABLE, MemoryTable((machine.region,)), need_reply=True)
    machine.client.send(data[:8] + b"\x48\0\0\0" + data[12:] + bytes(32), [machine.ram.fd])
    assert machine.client.reply().payload == 0
    machine.start(machine.reporting)
    machine.check_alive()


def unfit_files(directory: Path, resources: ExitStack) -> dict[str, int]:
    """Return descriptors that cannot be memory."""
    path = directory / "memory"
    path.write_bytes(bytes(RAM_BYTES))
    short = closing(resources, os.memfd_create("short"))
    os.ftruncate(short, RAM_BYTES - 1)
    reading, writing = os.pipe()
    resources.callback(os.close, writing)
    return {
        "directory": closing(resources, os.open(directory, os.O_RDONLY)),
        "socket": resources.enter_context(socket.socket(socket.AF_UNIX)).fileno(),
        "eventfd": closing(resources, os.eventfd(0)),
        "pipe": closing(resources, reading),
        "character device": closing(resources, os.open("/dev/zero", os.O_RDWR)),
        "read-only file": closing(resources, os.open(path, os.O_RDONLY)),
        "write-only file": closing(resources, os.open(path, os.O_WRONLY)),
        "path only": closing(resources, os.open(path, os.O_PATH)),
        "short file": short,
    }


@pytest.mark.parametrize(
    "kind",
    [
        "directory",
        "socket",
        "eventfd",
        "pipe",
        "character device",
        "read-only file",
        "write-only file",
        "path only",
        "short file",
    ],
)
@pytest.mark.parametrize("request_number", [SET_MEM_TABLE, ADD])
def test_file_that_cannot_be_memory(
    scene: Scene, tmp_path: Path, resources: ExitStack, kind: str, request_number: FrontendRequest
) -> None:
    machine = scene.machine()
    fd = unfit_files(tmp_path, resources)[kind]
    with unchanged_fds(scene.daemon.pid):
        if request_number is ADD:
            assert machine.ask(ADD, region(guest=0, user=0), [fd]) == 1
        else:
            assert machine.ask(SET_MEM_TABLE, MemoryTable((region(),)), [fd]) == 1
    machine.check_alive()
    scene.expect(machine, ("message_refused", request_number.name))


def test_regular_file_on_disk_serves_as_memory(scene: Scene, tmp_path: Path) -> None:
    """Its pages are released like any other's, as blocks of the file system."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(RAM_BYTES))
    machine = scene.machine(run=False)
    with path.open("r+b") as file:
        assert (
            machine.ask(
                SET_MEM_TABLE, MemoryTable((region(), region(0, RAM_BYTES, 0))), [machine.ram.fd, file.fileno()]
            )
            == 0
        )
        machine.start(machine.reporting)
        machine.reporting.driver.add((), [(MIB, MIB)])
        machine.reporting.kick()
        machine.reporting.collect()
        assert os.lseek(file.fileno(), MIB, os.SEEK_DATA) == 2 * MIB
    told = scene.daemon.events.wait("memory", vm=machine.client.number)
    assert told["sealed"] is False


@pytest.mark.parametrize("sealed", [True, False])
def test_memory_event_says_whether_the_file_is_sealed(scene: Scene, sealed: bool) -> None:
    machine = scene.machine(ram=Ram(sealed=sealed))
    event = scene.daemon.events.wait("memory", vm=machine.client.number)
    assert (event["regions"], event["bytes"], event["sealed"]) == (1, RAM_BYTES, sealed)


def test_empty_memory_table_parks_the_rings(scene: Scene) -> None:
    machine = scene.machine()
    assert machine.ask(SET_MEM_TABLE, MemoryTable(())) == 0
    scene.expect(machine, *(("queue_stopped", str(index)) for index in range(3)))
    machine.ram.touch(DATA_AT, PAGE_SIZE)
    before = machine.ram.pages()
    machine.submit([(DATA_AT, PAGE_SIZE)])
    assert machine.ask(FrontendRequest.GET_QUEUE_NUM) == 5
    assert machine.ram.pages() == before
    machine.set_memory()  # and the ring goes on, without another kick
    machine.reporting.collect()
    assert machine.ram.pages() == before - {DATA_AT}


def test_table_sent_again_while_rings_run_loses_nothing(scene: Scene) -> None:
    machine = scene.machine()
    for _ in range(20):
        machine.ram.touch(DATA_AT, 4 * MIB)
        machine.submit([(DATA_AT, 2 * MIB), (DATA_AT + 2 * MIB, 2 * MIB)])
        machine.set_memory()
        machine.reporting.collect()
        assert machine.ram.pages() == set()
    scene.expect(machine)


def test_table_that_moves_the_memory_is_used_from_then_on(scene: Scene) -> None:
    """Guest addresses change, user addresses of the rings stay: each report is judged by the table of its time."""
    machine = scene.machine()
    machine.check_alive()
    moved = replace(machine.region, guest_address=GuestAddress(GUEST_BASE + 2 * RAM_BYTES))
    assert machine.ask(SET_MEM_TABLE, MemoryTable((moved,)), [machine.ram.fd]) == 0
    machine.ram.touch(DATA_AT, 2 * PAGE_SIZE)
    before = machine.ram.pages()
    machine.report((DATA_AT, PAGE_SIZE))
    assert machine.ram.pages() == before
    machine.report((DATA_AT + 2 * RAM_BYTES, PAGE_SIZE))
    assert machine.ram.pages() == before - {DATA_AT}
    scene.expect(machine, ("refused", "out_of_range"))


@pytest.mark.parametrize("offset", [PAGE_SIZE, 512])
def test_file_offset_is_part_of_every_translation(scene: Scene, offset: int) -> None:
    """Rings and discards lie ``offset`` bytes deeper in the file; what is a whole page is judged in the file."""
    machine = scene.machine(run=False)
    moved = region(guest=GUEST_BASE + offset, size=RAM_BYTES - offset, user=USER_BASE + offset, offset=offset)
    assert machine.ask(SET_MEM_TABLE, MemoryTable((moved,)), [machine.ram.fd]) == 0
    queue = machine.queues[1]  # queue 0 begins below the region
    machine.start(queue)
    machine.start(machine.reporting)
    machine.check_alive()


# -- single regions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def client(scene: Scene) -> Client:
    client = scene.client()
    assert client.ask(FrontendRequest.SET_PROTOCOL_FEATURES, SLOTS) == 0
    return client


def test_regions_come_and_go_one_by_one(scene: Scene, client: Client, resources: ExitStack) -> None:
    fd = closing(resources, os.memfd_create("regions", os.MFD_ALLOW_SEALING))
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # no worker of its own is needed
    with unchanged_fds(scene.daemon.pid):
        slots = client.ask(FrontendRequest.GET_MAX_MEM_SLOTS)
        assert slots == 509
        for i in range(slots):
            assert client.ask(ADD, region(guest=i * MIB, size=MIB, user=i * MIB), [fd]) == 0
        assert len([name for name in open_fds(scene.daemon.pid).values() if "regions" in name]) == slots
        assert client.ask(ADD, region(guest=slots * MIB, size=MIB, user=slots * MIB), [fd]) == 1
        assert client.ask(FrontendRequest.GET_MAX_MEM_SLOTS) == slots
        for i in reversed(range(slots)):
            assert client.ask(REMOVE, region(guest=i * MIB, size=MIB, user=i * MIB, offset=i)) == 0
    scene.expect(client, ("message_refused", "ADD_MEM_REG"))


@pytest.mark.parametrize("count", [0, 2])
def test_region_to_add_comes_with_one_descriptor(
    scene: Scene, client: Client, resources: ExitStack, count: int
) -> None:
    fd = closing(resources, os.memfd_create("regions"))
    os.ftruncate(fd, RAM_BYTES)
    with unchanged_fds(scene.daemon.pid):
        assert client.ask(ADD, region(), [fd] * count) == 1
    scene.expect(client, ("message_refused", "ADD_MEM_REG"))


def test_region_to_remove_may_come_with_a_descriptor(scene: Scene) -> None:
    machine = scene.machine()
    assert machine.ask(REMOVE, replace(machine.region, size=MIB)) == 1
    machine.check_alive()
    assert machine.ask(REMOVE, machine.region, [machine.ram.fd]) == 0
    parked = [("queue_stopped", str(index)) for index in range(3)]
    scene.expect(machine, ("message_refused", "REM_MEM_REG"), *parked)
    assert machine.ask(ADD, machine.region, [machine.ram.fd]) == 0
    machine.check_alive()


def test_added_region_is_reported_while_rings_run(scene: Scene) -> None:
    machine = scene.machine()
    more = Ram()
    more.touch(0, 4 * PAGE_SIZE)
    added = region(guest=GUEST_BASE + RAM_BYTES, user=0)
    assert machine.ask(ADD, added, [more.fd]) == 0
    # Guest addresses go on where the first region ends; a range over the border is refused all the same.
    machine.ram.touch(RAM_BYTES - PAGE_SIZE, PAGE_SIZE)
    machine.report((RAM_BYTES - PAGE_SIZE, 2 * PAGE_SIZE), (RAM_BYTES + PAGE_SIZE, PAGE_SIZE))
    assert machine.ram.pages() == {RAM_BYTES - PAGE_SIZE}
    assert more.pages(0) == {0, 2 * PAGE_SIZE, 3 * PAGE_SIZE}
    scene.expect(machine, ("refused", "crosses_regions"))
    more.close()


def test_memory_sealed_against_writing_is_acknowledged_and_kept(scene: Scene) -> None:
    """The seal comes after the rings were mapped, as a future-write seal may: every discard then fails with EPERM."""
    machine = scene.machine(ram=Ram(sealed=False))
    machine.check_alive()
    fcntl.fcntl(machine.ram.fd, fcntl.F_ADD_SEALS, 0x0010)  # F_SEAL_FUTURE_WRITE, linux/fcntl.h
    before = machine.ram.pages()
    machine.ram.touch(DATA_AT + MIB, 2 * PAGE_SIZE)
    machine.report((DATA_AT + MIB, PAGE_SIZE))
    assert machine.ram.pages() == before | {DATA_AT + MIB, DATA_AT + MIB + PAGE_SIZE}
    refused = scene.daemon.events.wait("refused", vm=machine.client.number)
    assert (refused["reason"], refused["gpa"], refused["bytes"]) == (
        "discard_failed",
        GUEST_BASE + DATA_AT + MIB,
        PAGE_SIZE,
    )
    scene.expect(machine, ("refused", "discard_failed"))
