"""How much memory a guest has, and what a balloon leaves it."""

import pytest

from host.control.guest_ram import RESERVE_BYTES, GuestRam
from protocol.errors import BalloonError
from tests.host.control.machine import MIB, PAGES_PER_MIB, FakeMachine

GIB = 1 << 30
STATS_VQ, DEFLATE_ON_OOM = 1 << 1, 1 << 2


@pytest.mark.parametrize(
    ("ram", "size", "most_mib"),
    [
        (GuestRam(), 0, 0),
        (GuestRam(table=GIB), GIB, 1024 - 64),
        (GuestRam(table=128 * MIB), 128 * MIB, 64),
        (GuestRam(table=32 * MIB), 32 * MIB, 16),
        (GuestRam(table=GIB, reserve=0), GIB, 1024),
        (GuestRam(table=GIB, reserve=256 * MIB), GIB, 768),
        (GuestRam(table=GIB, total=980 * MIB), GIB, 980 - 64),
        (GuestRam(table=GIB, total=480 * MIB), 480 * MIB, 480 - 64),
        (GuestRam(table=GIB, total=1 << 60), GIB, 1024 - 64),
        (GuestRam(table=GIB, stated=512 * MIB), 512 * MIB, 512 - 64),
        (GuestRam(table=GIB, stated=512 * MIB, total=490 * MIB), 512 * MIB, 490 - 64),
        (GuestRam(table=512 * MIB - 131072, stated=512 * MIB), 512 * MIB, 512 - 64),
    ],
    ids=[
        "unknown",
        "table",
        "small",
        "smaller",
        "no reserve",
        "large reserve",
        "kernel's own part",
        "NVDIMM",
        "boast",
        "stated",
        "stated, with statistics",
        "shadowed",
    ],
)
def test_size_of_a_guest_and_of_its_largest_balloon(ram: GuestRam, size: int, most_mib: int) -> None:
    assert ram.bytes == size
    assert ram.most_pages == most_mib * PAGES_PER_MIB


def test_balloon_never_exceeds_its_field() -> None:
    assert GuestRam(table=1 << 60).most_pages == (1 << 32) - 1


def shown(machine: FakeMachine) -> float:
    return machine.balloon.config.num_pages / PAGES_PER_MIB


@pytest.mark.asyncio
async def test_target_that_is_too_large_for_the_memory_is_remembered_and_shown_in_part() -> None:
    """The option --balloon is the same for all guests, and comes before their memory."""
    machine = FakeMachine(0, memory_bytes=0)
    size = machine.control.size
    size.resume(1024 * PAGES_PER_MIB, 0)
    targets = []
    for mib in (0, 128, 2048, 512):
        machine.memory_bytes = mib * MIB
        machine.control.memory_changed()
        targets.append(shown(machine))
    assert targets == [0, 64, 1024, 448]
    assert machine.fields("target") == [{"bytes": mib * MIB} for mib in (64, 1024, 448)]
    assert machine.control.info().target_pages == 1024 * PAGES_PER_MIB


@pytest.mark.asyncio
async def test_target_is_looked_at_again_when_anything_is_learned_of_the_memory() -> None:
    machine = FakeMachine(STATS_VQ | DEFLATE_ON_OOM, memory_bytes=GIB)
    control = machine.control
    control.set_num_pages(900 * PAGES_PER_MIB)
    assert shown(machine) == 900
    machine.answer(memtot=480 * MIB)
    assert shown(machine) == 480 - 64
    control.state_memory(256 * MIB)
    assert shown(machine) == 256 - 64
    control.state_memory(256 * MIB, reserve=0)
    assert shown(machine) == 256
    control.state_memory(0, reserve=RESERVE_BYTES)
    control.driver_left()
    assert shown(machine) == 900
    machine.answer(memtot=980 * MIB)
    assert shown(machine) == 900
    control.size.resume(3000 * PAGES_PER_MIB, 0)
    assert shown(machine) == 1024 - 64


@pytest.mark.asyncio
async def test_pages_in_the_balloon_count_where_the_driver_leaves_them_out_of_its_total() -> None:
    machine = FakeMachine(STATS_VQ, memory_bytes=GIB)
    machine.control.set_num_pages(900 * PAGES_PER_MIB)
    machine.set_actual(900 * PAGES_PER_MIB)
    machine.answer(memtot=80 * MIB)
    assert shown(machine) == 900
    with_oom = FakeMachine(STATS_VQ | DEFLATE_ON_OOM, memory_bytes=GIB)
    with_oom.set_actual(900 * PAGES_PER_MIB)
    with_oom.answer(memtot=980 * MIB)
    with_oom.control.set_num_pages(900 * PAGES_PER_MIB)
    assert shown(with_oom) == 900


@pytest.mark.asyncio
async def test_target_that_leaves_less_than_the_reserve_is_refused() -> None:
    machine = FakeMachine(0, memory_bytes=256 * MIB)
    with pytest.raises(BalloonError, match="leaves a guest of 268435456 bytes too little: 201326592 is the most"):
        machine.control.set_num_pages(193 * PAGES_PER_MIB)
    assert shown(machine) == 0
    machine.control.set_num_pages(192 * PAGES_PER_MIB)
    assert shown(machine) == 192
