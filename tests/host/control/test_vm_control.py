"""The controls of one virtual machine: its facts, and its end."""

import asyncio
import os

import pytest

from host.balloon.virtio_balloon import Outcome
from host.control.vm_control import VmControl
from host.memory.guest_memory import RegionFile
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from tests.host.control.machine import MIB, FakeMachine, look_at_once

STATS_VQ = 1 << 1


@pytest.mark.asyncio
async def test_facts_are_those_of_the_machine() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.control.set_num_pages(12)
    machine.set_actual(5)
    machine.control.name = "qemu"
    machine.metrics.refused["unaligned"] = 2
    machine.metrics.reports = 7
    assert machine.control.info().last_report is None
    machine.serve(BalloonQueue.REPORTING, Outcome())
    info = machine.control.info()
    assert (info.pid, info.name, info.features, info.driver_ready) == (4711, "qemu", STATS_VQ, True)
    assert (info.memory_bytes, info.guest_bytes, info.setup) == (256 * MIB, 256 * MIB, machine.setup)
    assert (info.num_pages, info.target_pages, info.actual) == (12, 12, 5)
    assert (info.reports, info.refused) == (7, {"unaligned": 2})
    assert info.last_report is not None
    assert 0 <= info.last_report <= info.age + 1


@pytest.mark.asyncio
async def test_waiting_commands_fail_when_the_machine_goes() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.stats.on_give_back = lambda: None
    asked = asyncio.create_task(machine.control.statistics())
    await asyncio.sleep(0)
    machine.control.close()
    with pytest.raises(BalloonError, match="has gone"):
        await asked


@pytest.mark.asyncio
async def test_driver_that_left_leaves_no_state_in_the_controls() -> None:
    machine = FakeMachine(STATS_VQ)
    changes: list[int] = []
    machine.control.on_balloon_change = changes.append
    await machine.control.statistics()
    machine.set_actual(5)
    reclaim = asyncio.create_task(machine.control.reclaim())
    await asyncio.sleep(0.01)
    machine.balloon.forget_driver()
    machine.control.driver_left()
    assert machine.control.last_statistics is None
    assert not (await reclaim).complete
    machine.control.close()
    assert changes == [5, 0]
    assert machine.fields("balloon")[-1]["actual_bytes"] == 0


@pytest.mark.asyncio
async def test_memory_that_came_back_is_told_once_another_process_would_know_it() -> None:
    """A counter of Prometheus never goes back, and a worker may be killed after each answer."""
    machine, journaled = FakeMachine(STATS_VQ), 0

    def count() -> None:
        nonlocal journaled
        journaled += 1

    control = VmControl(machine, look_at_once, count)
    fd = os.memfd_create("ram")
    machine.region_files = [RegionFile(fd, PAGE_SIZE, sealed=True, identity=(1, 1), answers_at_once=True)]
    for size, changes in ((8, 0), (2, 0), (6, 1), (6, 1)):
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size * PAGE_SIZE)
        await control.backed_bytes()
        assert journaled == changes
    os.close(fd)
    other = FakeMachine(STATS_VQ).control
    other.resume(control.write_down())
    assert other.info().refaulted_bytes == control.info().refaulted_bytes == 4 * PAGE_SIZE
