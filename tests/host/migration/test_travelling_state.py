"""A device's state from one daemon's objects into another's."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from host.balloon.free_page_hinting import COMMAND_ID_DONE, COMMAND_ID_STOP
from host.balloon.virtio_balloon import VirtioBalloon
from host.control.vm_control import VmControl
from host.events.metrics import VmMetrics
from host.memory.discard_plan import Refusal
from host.memory.guest_memory import RegionFile
from host.migration.device_state import DeviceState, parse_state
from host.migration.travelling_state import build_state, restore_state
from host.ring.device_facts import DeviceFacts
from host.vhost_user.device_setup import DeviceSetup
from protocol.balloon_config import BalloonConfig
from protocol.virtio_balloon import BalloonQueue, QueueDialect
from tests.host.control.machine import look_at_once


class Machine:
    """A virtual machine of which nothing runs."""

    driver_ready = False
    peer_pid = 1
    memory_bytes = 1 << 30
    setup = DeviceSetup(None, QueueDialect.NEGOTIATED, {})
    device_facts = DeviceFacts()

    def __init__(self) -> None:
        self.balloon = VirtioBalloon()
        self.metrics = VmMetrics()
        self.region_files: list[RegionFile] = []
        self.control = VmControl(self, look_at_once)

    def queue(self, queue: BalloonQueue) -> None:
        return None

    def change_config(self, **fields: int) -> None:
        self.balloon.config = BalloonConfig(**fields)

    def disconnect(self) -> None:
        raise AssertionError("disconnect")

    def emit(self, event: str, **fields: object) -> None:
        raise AssertionError(event)

    def build(self) -> DeviceState:
        """Return the state after a trip through its document."""
        return parse_state(build_state(self.balloon, self.control, self.metrics).build())

    def restore(self, state: DeviceState) -> None:
        restore_state(state, self.balloon, self.control, self.metrics)


def in_loop(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_sizes_and_counters_arrive() -> None:
    async def go() -> None:
        source, destination = Machine(), Machine()
        source.balloon.config = BalloonConfig(num_pages=512, actual=500, poison_val=0xAA)
        source.balloon.poison_told = True
        source.control = VmControl(source, look_at_once)
        source.metrics.reports = 3
        source.metrics.refused["unaligned"] = 2
        destination.restore(source.build())
        assert destination.balloon.config == BalloonConfig(num_pages=512, actual=500, poison_val=0xAA)
        assert destination.balloon.poison_told
        assert destination.control.size.target_pages == 512
        assert destination.metrics.reports == 3
        assert destination.metrics.refused == {"unaligned": 2}
        assert destination.build() == source.build()
        told: list[Mapping[str, Any]] = []
        destination.control.notices.tell = lambda _name, data: told.append(data)
        destination.metrics.reports += 1
        destination.control.notices.flush()
        assert [data["reports"] for data in told] == [1]  # and not those that the source has told

    in_loop(go())


def test_poison_value_that_was_not_told_is_not_zero_at_the_destination() -> None:
    async def go() -> None:
        source, destination = Machine(), Machine()
        destination.balloon.features = 1 << 4
        destination.restore(source.build())
        kept = [destination.balloon.keeps_pages]
        source.balloon.write_config(12, bytes(4), poison_offered=True)
        destination.restore(source.build())
        assert [*kept, destination.balloon.keeps_pages] == [Refusal.POISON, None]

    in_loop(go())


def test_size_during_a_reclaim_does_not_travel() -> None:
    async def go() -> None:
        source = Machine()
        source.emit = lambda *_args, **_fields: None  # type: ignore[method-assign]  # this one may tell of its target
        source.control.set_num_pages(100)
        source.control.size.inflate_to(900)
        assert source.balloon.config.num_pages == 900
        assert source.build().num_pages == 100

    in_loop(go())


def test_hinting_round_is_over_and_its_id_is_not_used_again() -> None:
    async def go() -> None:
        source, destination = Machine(), Machine()
        ids = [source.balloon.hinting.start()]
        source.balloon.hinting.stop()
        ids.append(source.balloon.hinting.start())
        destination.restore(source.build())
        hinting = destination.balloon.hinting
        assert destination.balloon.config.free_page_hint_cmd_id == hinting.command_id == COMMAND_ID_DONE
        hinting.take_command(ids[-1])  # the driver has not noticed yet
        assert not hinting.accepts()
        third = Machine()
        third.restore(destination.build())  # it moves on without another round
        assert third.balloon.config.free_page_hint_cmd_id == COMMAND_ID_DONE
        assert hinting.start() not in ids
        assert third.balloon.hinting.start() not in ids

    in_loop(go())


def test_round_that_ended_before_an_older_state_was_loaded_is_not_taken_for_the_next_one() -> None:
    """Loading sets the ids back, so the next round has one that the driver has ended before."""

    async def go() -> None:
        machine = Machine()
        hinting = machine.balloon.hinting
        machine.balloon.hinting.start()
        hinting.stop()
        older = machine.build()
        later = hinting.start()
        hinting.take_command(later)
        hinting.take_command(COMMAND_ID_STOP)
        hinting.stop()
        hinting.done()
        machine.restore(older)
        assert hinting.ended_id is None
        assert hinting.start() == later
        hinting.take_command(later)
        assert hinting.accepts()

    in_loop(go())


def test_absent_round_is_not_shown_as_done() -> None:
    async def go() -> None:
        source, destination = Machine(), Machine()
        source.balloon.hinting.last_id = 1000  # where each daemon begins to count is its own affair
        destination.restore(source.build())
        assert destination.balloon.config.free_page_hint_cmd_id == COMMAND_ID_STOP
        assert destination.balloon.hinting.command_id == COMMAND_ID_STOP

    in_loop(go())


def test_interval_of_statistics_goes_on() -> None:
    async def go() -> None:
        source, destination = Machine(), Machine()
        source.control.set_statistics_interval(0.001)  # shorter than what travels
        destination.restore(source.build())
        assert destination.control.statistics_interval == 0.01
        source.control.set_statistics_interval(0)
        destination.restore(source.build())
        assert destination.control.statistics_interval == 0

    in_loop(go())


def test_counters_with_unknown_names_are_passed_over() -> None:
    async def go() -> None:
        machine = Machine()
        state = DeviceState(
            num_pages=0,
            actual=0,
            poison_val=0,
            last_command_id=1,
            statistics_interval=0,
            counters={"count": 5, "_refused_limit": 7, "reports": 1},
        )
        machine.restore(state)
        assert machine.metrics.reports == 1
        assert callable(machine.metrics.count)

    in_loop(go())
