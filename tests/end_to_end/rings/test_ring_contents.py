"""The content of a ring: refused ranges beside good ones, broken rings, event indices."""

import os
import struct
from collections.abc import Callable

import pytest

from protocol.memory import PAGE_SIZE
from protocol.split_ring import DESCRIPTOR, VIRTQ_AVAIL_F_NO_INTERRUPT, Descriptor
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
from tests.end_to_end.conftest import Scene
from tests.harness.virtual_machine import (
    DATA_AT,
    GUEST_BASE,
    INFLATE,
    MIB,
    QUEUE_SIZE,
    RAM_BYTES,
    REPORTING,
    WANTED,
    TestQueue,
    VirtualMachine,
)

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
DATA = GUEST_BASE + DATA_AT
TABLE_AT = 0xC0000
TABLE = GUEST_BASE + TABLE_AT
P = PAGE_SIZE
GOOD = [(DATA_AT + 8 * P, 2 * P), (DATA_AT + 15 * P, P)]
GOOD_PAGES = {DATA_AT + 8 * P, DATA_AT + 9 * P, DATA_AT + 15 * P}

DIRECT = WANTED & ~feature_mask(FeatureBit.RING_INDIRECT_DESC)
NO_EVENT_IDX = WANTED & ~feature_mask(FeatureBit.RING_EVENT_IDX)
PLAIN = DIRECT & NO_EVENT_IDX


# -- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [WANTED, PLAIN], ids=["indirect", "direct"])
@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (DATA_AT, 0, "empty"),
        (DATA_AT + 512, P, "unaligned"),
        (DATA_AT + 1, P, "unaligned"),
        (DATA_AT, P + 512, "unaligned"),
        (DATA_AT, 512, "unaligned"),
        (DATA_AT + 16 * P - 1, 2, "unaligned"),
        (-P, P, "out_of_range"),
        (RAM_BYTES, P, "out_of_range"),
        (-GUEST_BASE, P, "out_of_range"),
        ((1 << 64) - P - GUEST_BASE, 2 * P, "out_of_range"),
        (-2 * P, 4 * P, "out_of_range"),
        (RAM_BYTES - P, 2 * P, "crosses_regions"),
        (DATA_AT, 0xFFFFF000, "crosses_regions"),
        (REPORTING * 0x8000, P, "ring_memory"),
        (INFLATE * 0x8000 + 0x6000, P, "ring_memory"),
        (0, RAM_BYTES, "ring_memory"),
    ],
)
def test_bad_range_is_kept_and_its_neighbours_are_not(
    scene: Scene, wanted: int, offset: int, length: int, reason: str
) -> None:
    machine = scene.machine(wanted=wanted)
    machine.ram.touch(DATA_AT, 16 * P)
    machine.ram.touch(RAM_BYTES - P, P)
    before = machine.ram.pages()
    machine.report(GOOD[0], (offset, length), GOOD[1])
    assert machine.ram.pages() == before - GOOD_PAGES
    assert not machine.ram.spoilt_pages()
    scene.expect(machine, ("refused", reason))
    event = scene.daemon.events.wait("refused", vm=machine.client.number)
    assert (event["gpa"], event["bytes"], event["ranges"]) == (GUEST_BASE + offset, length, 1)
    report = scene.daemon.events.all("report", vm=machine.client.number)[0]
    assert report["ranges"] == 3
    assert report["bytes"] == length + 3 * P
    assert (report["discarded_bytes"], report["refused_bytes"]) == (3 * P, length)


def test_refusals_of_one_chain_are_summed_by_reason(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 16 * P)
    before = machine.ram.pages()
    bad = [(DATA_AT + i * P + 512, P) for i in range(20)] + [(RAM_BYTES + i * P, P) for i in range(30)]
    machine.report(*bad, *GOOD)
    assert machine.ram.pages() == before - GOOD_PAGES
    scene.expect(machine, ("refused", "unaligned"), ("refused", "out_of_range"))
    ranges = [event["ranges"] for event in scene.daemon.events.all("refused", vm=machine.client.number)]
    assert ranges == [20, 30]
    machine.client.close()
    assert scene.end_of(machine)["refused"] == {"unaligned": 20, "out_of_range": 30}


def test_indirect_table_itself_is_spared(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 16 * P)
    put_table(machine, [(TABLE, P, WRITE | NEXT, 1), (DATA, P, WRITE, 0)])
    machine.reporting.ring.write_descriptor(0, Descriptor(TABLE, 32, INDIRECT, 0))
    table = machine.ram.map[TABLE_AT : TABLE_AT + P]
    publish(machine.reporting, 0)
    machine.reporting.wait_for_used_index(1)
    assert machine.ram.map[TABLE_AT : TABLE_AT + P] == table
    assert DATA_AT not in machine.ram.pages()
    scene.expect(machine, ("refused", "ring_memory"))


def test_ranges_that_overlap_or_repeat_are_discarded_once_and_again(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    machine.report((DATA_AT, 2 * P), (DATA_AT + P, 2 * P), (DATA_AT, 2 * P))
    assert machine.ram.pages() == {DATA_AT + 3 * P}
    machine.report((DATA_AT, 2 * P))
    machine.check_alive()


def test_readable_buffer_on_the_reporting_queue_is_kept(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    machine.reporting.driver.add([(DATA, P)], [(DATA + P, P)])
    machine.reporting.kick()
    machine.reporting.collect()
    assert machine.ram.pages() == {DATA_AT, DATA_AT + 2 * P, DATA_AT + 3 * P}
    scene.expect(machine, ("refused", "readable"))


def test_report_comes_back_only_after_its_pages_are_gone(scene: Scene) -> None:
    machine = scene.machine()
    ranges = [(at, MIB // 2) for at in range(DATA_AT, RAM_BYTES, MIB // 2)]
    for _ in range(10):
        machine.ram.touch(DATA_AT, RAM_BYTES - DATA_AT)
        machine.submit(ranges)
        while machine.reporting.ring.used[1] == machine.reporting.ring.avail[1] - 1:
            pass
        assert machine.ram.pages() == set()
        machine.reporting.collect()


# -- broken rings -----------------------------------------------------------------------------------------------------


def put_table(machine: VirtualMachine, descriptors: list[tuple[int, int, int, int]]) -> None:
    data = b"".join(DESCRIPTOR.pack(*descriptor) for descriptor in descriptors)
    machine.ram.map[TABLE_AT : TABLE_AT + len(data)] = data


def publish(queue: TestQueue, head: int, *, by: int = 1) -> None:
    """Make one head available, advancing the index by however much a broken driver would."""
    ring = queue.ring
    ring.avail[2 + (ring.avail[1] & (ring.size - 1))] = head
    ring.avail[1] = (ring.avail[1] + by) & 0xFFFF
    queue.kick()


def descriptors(*rows: tuple[int, int, int, int]) -> Callable[[VirtualMachine], None]:
    """Make direct descriptors available, head 0."""

    def prepare(machine: VirtualMachine) -> None:
        for index, row in enumerate(rows):
            machine.reporting.ring.write_descriptor(index, Descriptor(*row))
        publish(machine.reporting, 0)

    return prepare


def table(
    *rows: tuple[int, int, int, int], length: int | None = None, address: int = TABLE, flags: int = INDIRECT
) -> Callable[[VirtualMachine], None]:
    """Make one descriptor available that refers to an indirect table."""

    def prepare(machine: VirtualMachine) -> None:
        put_table(machine, list(rows))
        size = 16 * len(rows) if length is None else length
        machine.reporting.ring.write_descriptor(0, Descriptor(address, size, flags, 1))
        publish(machine.reporting, 0)

    return prepare


def ahead(machine: VirtualMachine) -> None:
    machine.reporting.ring.write_descriptor(0, Descriptor(DATA, P, WRITE, 0))
    publish(machine.reporting, 0, by=QUEUE_SIZE + 1)


def bad_head(machine: VirtualMachine) -> None:
    publish(machine.reporting, QUEUE_SIZE)


PAGE = (DATA, P, WRITE, 0)
BROKEN: dict[str, tuple[Callable[[VirtualMachine], None], str]] = {
    "available index too far ahead": (ahead, "available index is 129 ahead in a ring of 128"),
    "head outside": (bad_head, "descriptor index 128 in a ring of 128"),
    "next outside": (descriptors((DATA, P, WRITE | NEXT, QUEUE_SIZE)), "descriptor index 128 in a ring of 128"),
    "loop": (descriptors((DATA, P, WRITE | NEXT, 1), (DATA, P, WRITE | NEXT, 0)), "is a loop or longer than its ring"),
    "loop of one": (descriptors((DATA, P, WRITE | NEXT, 0)), "is a loop or longer than its ring"),
    "readable after writable": (
        descriptors((DATA, P, WRITE | NEXT, 1), (DATA, P, 0, 0)),
        "device-readable descriptor follows",
    ),
    "table of no bytes": (table(PAGE, length=0), "table of 0 bytes is not 1 to 1024 descriptors"),
    "table of half a descriptor": (table(PAGE, length=8), "table of 8 bytes is not 1 to 1024 descriptors"),
    "table of one and a half": (table(PAGE, length=24), "table of 24 bytes is not 1 to 1024 descriptors"),
    "table too long": (table(PAGE, length=16 * 1025), "table of 16400 bytes is not 1 to 1024 descriptors"),
    "table of 4 GiB": (table(PAGE, length=0xFFFFFFF0), "is not 1 to 1024 descriptors"),
    "table outside the memory": (table(PAGE, address=GUEST_BASE + RAM_BYTES), "are outside the guest's memory"),
    "table over the end": (table(PAGE, PAGE, address=GUEST_BASE + RAM_BYTES - 16), "are outside the guest's memory"),
    "table at the end of the address space": (table(PAGE, address=(1 << 64) - 8), "are outside the guest's memory"),
    "table in a table": (table((TABLE, 16, INDIRECT, 0)), "an indirect descriptor inside an indirect table"),
    "table that goes on": (table(PAGE, flags=INDIRECT | NEXT), "goes on after an indirect table"),
    "loop in a table": (table((DATA, P, WRITE | NEXT, 0)), "is a loop"),
    "next outside a table": (table((DATA, P, WRITE | NEXT, 2), PAGE), "descriptor index 2 in an indirect table of 2"),
}


@pytest.mark.parametrize(("prepare", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_ring_stops_alone(scene: Scene, prepare: Callable[[VirtualMachine], None], reason: str) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    before = machine.ram.pages()
    prepare(machine)
    scene.expect(machine, ("queue_stopped", str(REPORTING)))
    assert reason in scene.daemon.events.wait("queue_stopped", vm=machine.client.number)["reason"]
    assert machine.ram.pages() == before
    assert machine.reporting.ring.used[1] == 0
    machine.reporting.kick()  # it hears nothing any more
    machine.send_pfns(INFLATE, struct.pack("<I", (DATA + P) >> 12))  # its sister queue does
    assert machine.ram.pages() == before - {DATA_AT + P}
    machine.reporting.renew()
    machine.start(machine.reporting)
    machine.check_alive()


def test_indirect_descriptors_that_were_not_negotiated(scene: Scene) -> None:
    machine = scene.machine(wanted=DIRECT)
    table(PAGE)(machine)
    scene.expect(machine, ("queue_stopped", str(REPORTING)))
    reason = scene.daemon.events.wait("queue_stopped", vm=machine.client.number)["reason"]
    assert "INDIRECT_DESC was not negotiated" in reason


def test_chains_before_a_broken_one_are_served(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    ring = machine.reporting.ring
    ring.write_descriptor(0, Descriptor(DATA, P, WRITE, 0))
    ring.write_descriptor(1, Descriptor(DATA, P, WRITE | NEXT, 1))
    ring.avail[2], ring.avail[3] = 0, 1
    ring.avail[1] = 2
    machine.reporting.kick()
    scene.expect(machine, ("queue_stopped", str(REPORTING)))
    assert ring.used[1] == 1
    assert machine.ram.pages() == {DATA_AT + i * P for i in (1, 2, 3)}


def test_error_descriptor_tells_of_a_broken_ring(scene: Scene) -> None:
    machine = scene.machine()
    fd = os.eventfd(0)
    assert machine.ask(FrontendRequest.SET_VRING_ERR, VringFile(REPORTING, True), [fd]) == 0
    bad_head(machine)
    assert os.eventfd_read(fd) == 1
    os.close(fd)
    scene.expect(machine, ("queue_stopped", str(REPORTING)))


# -- good rings that look odd -----------------------------------------------------------------------------------------


def serve(machine: VirtualMachine, prepare: Callable[[VirtualMachine], None]) -> None:
    prepare(machine)
    machine.reporting.wait_for_used_index(1)
    assert tuple(machine.reporting.ring.used_elements[1:3]) == (0, 0)


def test_direct_descriptors_before_an_indirect_one(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    put_table(machine, [(DATA + P, P, WRITE | NEXT, 1), (DATA + 2 * P, P, WRITE, 0)])
    serve(machine, descriptors((DATA, P, WRITE | NEXT, 1), (TABLE, 32, INDIRECT, 0)))
    assert machine.ram.pages() == {DATA_AT + 3 * P}


def test_write_flag_on_the_descriptor_of_a_table_means_nothing(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    serve(machine, table(PAGE, flags=INDIRECT | WRITE))
    assert machine.ram.pages() == {DATA_AT + i * P for i in (1, 2, 3)}


def test_chain_in_disorder_through_its_table(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * P)
    serve(machine, table((DATA, P, WRITE | NEXT, 2), (DATA + P, P, WRITE, 0), (DATA + 2 * P, P, WRITE | NEXT, 1)))
    assert machine.ram.pages() == {DATA_AT + 3 * P}


def test_descriptor_with_a_whole_kernels_report(scene: Scene) -> None:
    machine = scene.machine()
    ranges = [(DATA_AT + i * 64 * P, 32 * P) for i in range(32)]
    machine.ram.touch(DATA_AT, 32 * 64 * P)
    kept = machine.ram.pages() - {at for start, size in ranges for at in range(start, start + size, P)}
    machine.report(*ranges)
    assert machine.ram.pages() == kept
    assert machine.reporting.ring.used[1] == 1
    assert scene.daemon.events.wait("report", vm=machine.client.number)["discarded_bytes"] == 32 * 32 * P


@pytest.mark.parametrize("wanted", [WANTED, PLAIN])
def test_full_ring_through_the_wrap_of_its_indices(scene: Scene, wanted: int) -> None:
    """66,000 reports, a full ring of 128 at a time: the 16-bit indices wrap, and each report comes back once."""
    machine = scene.machine(wanted=wanted)
    queue = machine.reporting
    for _ in range(65536 // QUEUE_SIZE + 3):
        for _ in range(QUEUE_SIZE):
            queue.driver.add((), [(DATA, P)])
        queue.kick()
        queue.collect(QUEUE_SIZE)
    machine.check_alive()


def test_available_index_ahead_by_exactly_the_size(scene: Scene) -> None:
    machine = scene.machine()
    for _ in range(QUEUE_SIZE):
        machine.reporting.driver.add((), [(DATA, P)])
    machine.reporting.kick()
    machine.reporting.collect(QUEUE_SIZE)


# -- notifications ----------------------------------------------------------------------------------------------------


def test_event_index_kicks_and_calls_once_for_each_report(scene: Scene) -> None:
    machine = scene.machine()
    for _ in range(300):
        machine.reporting.driver.add((), [(DATA, P)])
        if machine.reporting.driver.needs_kick():
            machine.reporting.kick()
        machine.reporting.collect()
    assert machine.reporting.ring.used[0] == 0  # flags stay 0 with event indices


def let_the_worker_finish(machine: VirtualMachine) -> None:
    # The used index is seen before the daemon has decided on an interrupt; stopping a queue waits for that decision.
    for enable in (0, 1):
        machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(machine.reporting.index, enable))


def test_driver_that_wants_no_interrupt_gets_none(scene: Scene) -> None:
    machine = scene.machine(wanted=NO_EVENT_IDX)
    machine.reporting.ring.avail[0] = VIRTQ_AVAIL_F_NO_INTERRUPT
    for _ in range(3):
        machine.submit([(DATA_AT, P)])
    machine.reporting.wait_for_used_index(3)
    let_the_worker_finish(machine)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.reporting.call_fd)
    machine.reporting.ring.avail[0] = 0
    machine.submit([(DATA_AT, P)])
    machine.reporting.wait_for_call()
    assert len(machine.reporting.collect(4)) == 4


def test_call_comes_only_when_the_used_event_is_crossed(scene: Scene) -> None:
    machine = scene.machine()
    ring = machine.reporting.ring
    ring.avail[ring.used_event_at] = 4  # tell me about the fifth
    for count in range(1, 5):
        machine.submit([(DATA_AT, P)])
        machine.reporting.wait_for_used_index(count)
    let_the_worker_finish(machine)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.reporting.call_fd)
    machine.submit([(DATA_AT, P)])
    machine.reporting.wait_for_call()
    assert ring.used[1] == 5
