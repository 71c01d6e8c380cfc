"""The habits of other devices: what each has a driver see, and that none of them discards what must stay."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.balloon.personality import OURS, PERSONALITIES, Personality
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.discard_plan import DeviceMemory, DiscardPlan
from host.virtqueue.virtqueue import Buffer, Chain
from protocol.balloon_config import BalloonConfig
from protocol.errors import VirtqueueError
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio import has_feature
from protocol.virtio_balloon import CONFIG_SIZE, BalloonFeature, BalloonQueue, QueueDialect

PAGE = 4096
BASE = 1 << 30
PAGES = 64
END = BASE + PAGES * PAGE
RING = FileRange(0, 8 * PAGE, 100)
REPORTING, POISON = 1 << 5, 1 << 4

KINDS = list(PERSONALITIES.values())
BY_MADVISE = ("firecracker", "crosvm", "libkrun")


def memory(page_size: int = PAGE) -> DeviceMemory:
    region = MemoryRegion(
        guest_address=GuestAddress(BASE), size=PAGES * PAGE, user_address=UserAddress(0), mmap_offset=0
    )
    return DeviceMemory(RegionTable([region]), page_sizes=(page_size,), protected=[RING])


def balloon(kind: Personality, features: int = REPORTING) -> VirtioBalloon:
    return VirtioBalloon(features=features, personality=kind)


def report(
    kind: Personality, *writable: Buffer, readable: tuple[Buffer, ...] = (), page_size: int = PAGE
) -> tuple[DiscardPlan, int]:
    """Return the plan of a report and its used length."""
    device = balloon(kind)
    chain = Chain(0, list(readable), list(writable), None)
    outcome = device.serve(BalloonQueue.REPORTING, chain, memory(page_size), no_read)
    return outcome.plan, device.used_length(BalloonQueue.REPORTING, chain, outcome, no_write)


def no_read(address: int, length: int) -> bytes:
    raise AssertionError((address, length))


def no_write(address: int, data: bytes) -> None:
    raise AssertionError((address, data))


def reasons(plan: DiscardPlan) -> list[str]:
    return [refused.reason.value for refused in plan.refused]


def pages(first: int, count: int = 1) -> Buffer:
    return BASE + first * PAGE, count * PAGE


def test_only_qemu_shows_a_driver_what_the_last_one_wrote_into_actual() -> None:
    for kind in KINDS:
        device = balloon(kind)
        device.write_config(4, (16).to_bytes(4, "little"), poison_offered=False)
        device.reset()
        device.forget_driver()
        assert device.config.actual == (16 if kind.name == "qemu" else 0)


def test_default_is_ours_and_every_personality_has_its_name_and_its_source() -> None:
    assert VirtioBalloon().personality is OURS
    assert {name: kind.name for name, kind in PERSONALITIES.items()} == {name: name for name in PERSONALITIES}
    assert all(kind.source for kind in KINDS)
    assert set(PERSONALITIES) == {
        "vhost-user-balloon", "qemu", "firecracker", "cloud-hypervisor", "crosvm", "libkrun", "text",
    }  # fmt: skip


OFFERED = {  # the balloon's own bits: must-tell, statistics, oom, hint, poison, reporting
    "vhost-user-balloon": 0b100110,
    "qemu": 0b110010,
    "firecracker": 0b100110,
    "cloud-hypervisor": 0b100100,
    "crosvm": 0b100111,
    "libkrun": 0b101010,
    "text": 0b100110,
}
RING_BITS = {"vhost-user-balloon": 0b11, "qemu": 0b11, "crosvm": 0b10, "text": 0b11}  # indirect, event index


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_offered_features(kind: Personality) -> None:
    assert kind.features & 0xFFFFFF == OFFERED[kind.name]
    assert kind.features >> 28 & 0b11 == RING_BITS.get(kind.name, 0)
    assert all(has_feature(kind.features, bit) for bit in (26, 30, 32))  # of the vhost-user session, and VERSION_1
    assert not any(has_feature(kind.features, bit) for bit in (34, 35))


NUMBERS = {
    "vhost-user-balloon": None,
    "qemu": QueueDialect.OFFERED,
    "firecracker": QueueDialect.OFFERED,
    "cloud-hypervisor": QueueDialect.OFFERED,
    "crosvm": QueueDialect.OFFERED,
    "libkrun": QueueDialect.FIXED,
    "text": QueueDialect.FIXED,
}
SIZES = {"firecracker": 12, "cloud-hypervisor": 8, "crosvm": 20}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_queue_numbers_and_size_of_the_configuration_space(kind: Personality) -> None:
    assert kind.queue_numbers is NUMBERS[kind.name]
    assert kind.config_size == SIZES.get(kind.name, CONFIG_SIZE)


@pytest.mark.parametrize(
    ("features", "size"), [(0, 8), (1 << BalloonFeature.FREE_PAGE_HINT, 12), (POISON, 16), (POISON | 1 << 3, 16)]
)
def test_configuration_space_of_qemu_ends_with_the_last_field_that_it_offers(features: int, size: int) -> None:
    offering = PERSONALITIES["qemu"].offering(features)
    assert (offering.config_size, offering.features) == (size, features)
    assert PERSONALITIES["crosvm"].offering(features).config_size == 20


def test_fields_beyond_the_configuration_space_read_zero_and_are_not_written() -> None:
    device = balloon(PERSONALITIES["cloud-hypervisor"])
    device.config = BalloonConfig(num_pages=1, actual=2, free_page_hint_cmd_id=3, poison_val=4)
    assert device.read_config(0, 20) == struct.pack("<IIIII", 1, 2, 0, 0, 0)
    device.write_config(0, b"\xff" * 16, poison_offered=True)
    assert device.config == BalloonConfig(num_pages=1, actual=0xFFFFFFFF, free_page_hint_cmd_id=3, poison_val=4)
    assert not device.poison_told


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_only_firecracker_lets_a_driver_write_what_is_the_devices(kind: Personality) -> None:
    device = balloon(kind)
    device.write_config(0, struct.pack("<III", 7, 8, 9), poison_offered=False)
    expected = (7, 8, 9) if kind.name == "firecracker" else (0, 8, 0)
    assert (device.config.num_pages, device.config.actual, device.config.free_page_hint_cmd_id) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_used_length_of_a_report(kind: Personality) -> None:
    _, length = report(kind, pages(16, 2), pages(40))
    assert length == (3 * PAGE if kind.name == "cloud-hypervisor" else 0)


def test_used_length_of_a_report_is_cut_to_the_field() -> None:
    _, length = report(PERSONALITIES["cloud-hypervisor"], *[(BASE, 1 << 31)] * 2, pages(20))
    assert length == PAGE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_direction_of_a_reported_page(kind: Personality) -> None:
    plan, _ = report(kind, pages(20), readable=(pages(30),))
    both = kind.name in (*BY_MADVISE, "cloud-hypervisor")
    discarded = [FileRange(0, page * PAGE, PAGE) for page in ((30, 20) if both else (20,))]
    assert (plan.discards, reasons(plan)) == (discarded, [] if both else ["readable"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("at", "length"), [(512, PAGE), (0, PAGE + 1), (0, 100)])
def test_range_of_broken_pages(kind: Personality, at: int, length: int) -> None:
    plan, _ = report(kind, (BASE + 20 * PAGE + at, length))
    if kind.name == "cloud-hypervisor":
        expected = [FileRange(0, 20 * PAGE + at, length)]
    elif kind.name in BY_MADVISE and at == 0:
        expected = [FileRange(0, 20 * PAGE, -(-length // PAGE) * PAGE)]
    else:
        expected = []
    assert plan.discards == expected
    assert reasons(plan) == ([] if expected else ["unaligned"])


def test_length_that_is_rounded_up_covers_no_part_of_a_larger_page() -> None:
    crosvm, size = PERSONALITIES["crosvm"], 4 * PAGE
    assert reasons(report(crosvm, pages(16, 3), page_size=size)[0]) == ["unaligned"]
    assert report(crosvm, pages(16, 7), page_size=size)[0].discards == [FileRange(0, 16 * PAGE, 4 * PAGE)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_range_that_leaves_the_memory(kind: Personality) -> None:
    plan, _ = report(kind, (END - PAGE, 2 * PAGE))
    clamped = kind.name in ("cloud-hypervisor", "qemu")
    assert plan.discards == ([FileRange(0, END - BASE - PAGE, PAGE)] if clamped else [])
    assert reasons(plan) == ([] if clamped else ["crosses_regions"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_range_outside_of_memory_is_acknowledged_but_for_libkrun(kind: Personality) -> None:
    if kind.name == "libkrun":
        with pytest.raises(VirtqueueError, match="libkrun ends at a report of 4096 bytes outside of memory"):
            report(kind, pages(20), (0, PAGE))
    else:
        plan, _ = report(kind, pages(20), (0, PAGE))
        assert (len(plan.discards), reasons(plan)) == (1, ["out_of_range"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_empty_range_and_the_rings_page_are_kept_by_all(kind: Personality) -> None:
    if kind.name == "qemu":
        with pytest.raises(VirtqueueError, match="qemu ends at a descriptor of no bytes"):
            report(kind, pages(20), (BASE + 20 * PAGE, 0))
        kind = replace(kind, breaks_empty=False)
    plan, _ = report(kind, (BASE + 20 * PAGE, 0), pages(8), pages(7, 3), (BASE + 8 * PAGE + 50, 10))
    assert plan.discards == []
    assert reasons(plan)[:3] == ["empty", "ring_memory", "ring_memory"]
    assert reasons(plan)[3] in ("unaligned", "ring_memory")


@pytest.mark.parametrize("buffers", [[(0, 2 * PAGE)], [(END - PAGE, 3 * PAGE)], [(0, PAGE), (END - 1, 2)]])
def test_qemu_lets_one_page_outside_of_memory_pass(buffers: list[Buffer]) -> None:
    with pytest.raises(VirtqueueError, match=r"qemu ends at a report of \d+ bytes outside of memory"):
        report(PERSONALITIES["qemu"], pages(20), *buffers)
    assert reasons(report(PERSONALITIES["qemu"], pages(20), (0, PAGE))[0]) == ["out_of_range"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_pattern_keeps_pages(kind: Personality) -> None:
    device = balloon(kind, REPORTING | POISON)
    device.poison_told, device.config = True, BalloonConfig(poison_val=0xAA)
    chain = Chain(0, [], [pages(20)], None)
    assert reasons(device.serve(BalloonQueue.REPORTING, chain, memory(), no_read).plan) == ["poison"]
    inflate = Chain(0, [(BASE, 4)], [], None)
    pfn = struct.pack("<I", (BASE >> 12) + 20)
    plan = device.serve(BalloonQueue.INFLATE, inflate, memory(), lambda address, length: pfn).plan
    assert reasons(plan) == ([] if kind.name in ("qemu", "text") else ["poison"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_queues_that_are_looked_at(kind: Personality) -> None:
    served = [queue for queue in BalloonQueue if balloon(kind).serves(queue)]
    assert served == ([BalloonQueue.REPORTING] if kind.name == "libkrun" else list(BalloonQueue))
    assert balloon(kind).serves(None)


ADDRESSES = st.one_of(
    st.integers(-4, PAGES + 4).map(lambda page: BASE + page * PAGE), st.integers(BASE - PAGE, END + PAGE)
)
LENGTHS = st.one_of(st.integers(0, 16).map(lambda count: count * PAGE), st.integers(0, 1 << 17))


@given(kind=st.sampled_from(KINDS), buffers=st.lists(st.tuples(ADDRESSES, LENGTHS), min_size=1, max_size=8))
def test_nothing_outside_of_what_may_go_is_ever_discarded(kind: Personality, buffers: list[Buffer]) -> None:
    try:
        plan, _ = report(kind, *buffers)
    except VirtqueueError:
        assert kind.outside_max is not None
        return
    protected = range(8 * PAGE, 9 * PAGE)
    for _, offset, length in plan.discards:
        assert 0 <= offset < offset + length <= PAGES * PAGE
        assert offset + length <= protected.start or offset >= protected.stop
        first = BASE + offset
        assert any(address == first and length <= -(-size // PAGE) * PAGE for address, size in buffers)
