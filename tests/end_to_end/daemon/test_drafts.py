"""The drafts DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE, as a driver sees them: used lengths, bitmap, content."""

import struct
from collections.abc import Iterator

import pytest

from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from tests.harness.processes import DaemonProcess
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, WANTED, VirtualMachine

REPORTED, ON_INFLATE = 1 << 6, 1 << 7
BITMAP_AT = 0xC0000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    directory = tmp_path_factory.mktemp("drafts")
    with DaemonProcess(directory, "--features", "draft-init-reported=on,draft-init-on-inflate=on,packed=on") as daemon:
        yield daemon


def used_length(vm: VirtualMachine, kind: BalloonQueue) -> int:
    """Return the used length of the one chain under way."""
    queue = vm.queue(kind)
    queue.kick()
    while (used := queue.driver.get_used()) is None:
        if not queue.driver.enable_interrupt():
            queue.wait_for_call()
    return used.length


def report(vm: VirtualMachine, *ranges: tuple[int, int]) -> int:
    vm.reporting.driver.add((), [(GUEST_BASE + offset, length) for offset, length in ranges])
    return used_length(vm, BalloonQueue.REPORTING)


def inflate(vm: VirtualMachine, *offsets: int) -> tuple[int, bytes]:
    """Return the used length of an inflate chain, and its bitmap, which held ones before."""
    data = struct.pack(f"<{len(offsets)}I", *((GUEST_BASE + offset) >> 12 for offset in offsets))
    room = -(-len(offsets) // 8)
    vm.ram.map[BITMAP_AT + 64 : BITMAP_AT + 64 + len(data)] = data
    vm.ram.map[BITMAP_AT : BITMAP_AT + 16] = b"\xee" * 16
    place = (GUEST_BASE + BITMAP_AT + 64, len(data)), (GUEST_BASE + BITMAP_AT, room)
    vm.queue(BalloonQueue.INFLATE).driver.add([place[0]], [place[1]])
    length = used_length(vm, BalloonQueue.INFLATE)
    assert vm.ram.map[BITMAP_AT + room : BITMAP_AT + 16] == b"\xee" * (16 - room)
    return length, vm.ram.map[BITMAP_AT : BITMAP_AT + room]


@pytest.mark.parametrize("packed", [False, True])
def test_report_says_how_much_of_it_reads_as_zeros(daemon: DaemonProcess, packed: bool) -> None:
    with VirtualMachine(daemon.socket_path, wanted=WANTED | REPORTED, packed=packed) as vm:
        vm.ram.touch(DATA_AT, 8 * PAGE_SIZE)
        assert report(vm, (DATA_AT, PAGE_SIZE)) == PAGE_SIZE
        assert vm.ram.map[DATA_AT : DATA_AT + PAGE_SIZE] == bytes(PAGE_SIZE)
        second, third = DATA_AT + PAGE_SIZE, DATA_AT + 4 * PAGE_SIZE
        assert report(vm, (second, 2 * PAGE_SIZE), (0, PAGE_SIZE), (third, PAGE_SIZE)) == 2 * PAGE_SIZE  # 0 has a ring
        assert report(vm, (DATA_AT + 6 * PAGE_SIZE, 100)) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_inflated_pages_have_a_bitmap(daemon: DaemonProcess, packed: bool) -> None:
    with VirtualMachine(daemon.socket_path, wanted=WANTED | ON_INFLATE, packed=packed) as vm:
        vm.ram.touch(DATA_AT, 16 * PAGE_SIZE)
        assert inflate(vm, DATA_AT) == (1, b"\x01")
        assert vm.ram.map[DATA_AT : DATA_AT + PAGE_SIZE] == bytes(PAGE_SIZE)
        four = [DATA_AT + number * PAGE_SIZE for number in (4, 3, 2, 1)]
        assert inflate(vm, *four) == (1, b"\x0f")
        assert inflate(vm, DATA_AT + 8 * PAGE_SIZE, 0, DATA_AT + 9 * PAGE_SIZE) == (1, b"\x05")
        assert inflate(vm, *[DATA_AT + number * PAGE_SIZE for number in range(5, 14)]) == (2, b"\xff\x01")
        assert vm.ram.pages(DATA_AT + PAGE_SIZE, DATA_AT + 14 * PAGE_SIZE) == set()


def test_without_negotiation_used_lengths_are_zero(daemon: DaemonProcess) -> None:
    with VirtualMachine(daemon.socket_path) as vm:
        vm.ram.touch(DATA_AT, 8 * PAGE_SIZE)
        assert report(vm, (DATA_AT, PAGE_SIZE)) == 0
        assert inflate(vm, DATA_AT + PAGE_SIZE) == (0, b"\xee")


def test_bitmap_outside_of_memory_stops_the_queue_alone(daemon: DaemonProcess) -> None:
    with VirtualMachine(daemon.socket_path, wanted=WANTED | ON_INFLATE) as vm:
        queue = vm.queue(BalloonQueue.INFLATE)
        vm.ram.map[BITMAP_AT : BITMAP_AT + 4] = struct.pack("<I", (GUEST_BASE + DATA_AT) >> 12)
        queue.driver.add([(GUEST_BASE + BITMAP_AT, 4)], [(0x1000, 1)])
        queue.kick()
        event = daemon.events.wait("queue_stopped", queue=0)
        assert event["reason"] == "1 bytes at guest address 0x1000 are outside the guest's memory"
        vm.check_alive()
