"""Memory of huge pages (hugetlb): whole ones are given back, parts of one are kept, since they cannot be."""

import mmap
import os
import struct
from pathlib import Path

import pytest

from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.doctor.finding import Cause
from host.qmp.qmp_client import QmpClient
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import PFN_SHIFT
from tests.end_to_end.conftest import Scene
from tests.end_to_end.daemon.test_control import ControlledDaemon
from tests.harness.virtual_machine import GUEST_BASE, INFLATE, MIB, Ram, VirtualMachine, page_pattern

SIZE = 16 * MIB


class HugeRam(Ram):
    """A memory file of huge pages. ``lseek`` knows no holes in one; its blocks are counted."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("test-huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        os.ftruncate(self.fd, SIZE)
        self.size = SIZE
        self.page_size = os.fstat(self.fd).st_blksize
        self.map = mmap.mmap(self.fd, SIZE)

    def huge_pages(self) -> int:
        """Return how many huge pages the file has memory for."""
        return os.fstat(self.fd).st_blocks * 512 // self.page_size


@pytest.fixture
def ram() -> HugeRam:
    words = Path("/proc/meminfo").read_text(encoding="ascii").split()
    sizes = {name: int(words[words.index(name) + 1]) for name in ("HugePages_Free:", "Hugepagesize:") if name in words}
    if sizes.get("Hugepagesize:") != 2048 or sizes["HugePages_Free:"] < SIZE // (2 * MIB):
        pytest.skip("fewer than 8 free huge pages of 2 MiB (sysctl vm.nr_hugepages)")
    return HugeRam()  # which its machine closes


def test_whole_huge_pages_are_given_back_and_no_part_of_one(scene: Scene, ram: HugeRam) -> None:
    huge = ram.page_size
    machine = scene.machine(ram=ram)
    ram.touch(huge, SIZE - huge)
    assert ram.huge_pages() == 8  # the rings' own is the first
    machine.report((2 * huge, huge), (4 * huge, 2 * huge))
    assert ram.huge_pages() == 5
    assert ram.map[2 * huge : 3 * huge] == bytes(huge)
    machine.report((3 * huge, huge // 2), (3 * huge + PAGE_SIZE, huge), (0, huge))
    assert ram.huge_pages() == 5 + 1  # reading it has allocated one
    assert [ram.map[at : at + PAGE_SIZE] for at in (3 * huge, 6 * huge)] == [
        page_pattern(3 * huge),
        page_pattern(6 * huge),
    ]
    scene.expect(machine, ("refused", "unaligned"), ("refused", "ring_memory"))


def test_doctor_names_huge_pages_that_are_larger_than_the_blocks(tmp_path: Path, ram: HugeRam) -> None:
    with (
        ControlledDaemon(tmp_path) as daemon,
        VirtualMachine(daemon.socket_path, ram=ram) as machine,
        QmpClient(daemon.control_path) as client,
    ):
        machine.report((2 * ram.page_size, ram.page_size // 2))
        (found,) = diagnose(read_facts(client.command("query-vms")[0]))
        assert found.cause is Cause.HUGE_PAGES
        assert "huge pages of 2.0 MiB, and the guest reports blocks of 1.0 MiB" in found.sentence


def test_balloon_gives_back_the_huge_pages_that_are_in_it_wholly(scene: Scene, ram: HugeRam) -> None:
    huge, pages = ram.page_size, ram.page_size // PAGE_SIZE
    machine = scene.machine(ram=ram)
    ram.touch(huge, SIZE - huge)
    first = (GUEST_BASE + 6 * huge) >> PFN_SHIFT
    machine.send_pfns(INFLATE, struct.pack(f"<{pages}I", *range(first, first + pages)))
    assert ram.huge_pages() == 7
    machine.send_pfns(INFLATE, struct.pack(f"<{pages // 2}I", *range(first + pages, first + pages + pages // 2)))
    assert ram.huge_pages() == 7  # half of one, as Linux's drivers send it: 256 pages at a time
    scene.expect(machine, ("refused", "unaligned"))


def test_huge_pages_that_are_cut_short_below_rings_cost_these(scene: Scene, ram: HugeRam) -> None:
    machine = scene.machine(ram=ram)
    ram.touch(ram.page_size, ram.page_size)
    os.ftruncate(ram.fd, 0)
    for queue in machine.queues:
        queue.kick()
    stopped = scene.daemon.events.wait_for_count("queue_stopped", len(machine.queues), vm=machine.client.number)
    scene.expect(machine, *[("queue_stopped", str(event["queue"])) for event in stopped])
