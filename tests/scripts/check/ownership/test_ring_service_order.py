"""The model's worker takes the steps of the real ring service in its order."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from host.balloon.virtio_balloon import Outcome
from host.memory.discard_plan import DiscardPlan
from host.ring import ring_service
from host.ring.ring_service import RingService
from host.ring.service_state import ServiceEvent, ServiceState
from host.ring.turn import Turn
from host.virtqueue.virtqueue import Chain
from protocol.memory import PAGE_SIZE, FileRange
from protocol.virtio_balloon import BalloonQueue
from scripts.check.ownership.page_state import PageEvent
from scripts.check.ownership.pages import Pages
from scripts.check.ownership.world.device_side import DeviceSide
from scripts.check.ownership.world.world import World
from scripts.check.ownership.world.world_options import WorldOptions

RANGES = Pages(1024, 512), Pages(3072, 512)
"""Not neighbours, so two system calls."""


def steps_of_the_real_one(state: ServiceState, patience_ends: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serve one chain of two ranges with the real service; return what it does."""
    done = list[str]()
    discards = [FileRange(0, pages.first * PAGE_SIZE, pages.length * PAGE_SIZE) for pages in RANGES]

    def note(name: str, result: Any = None) -> Any:
        def called(*_arguments: Any) -> Any:
            done.append(name)
            return result

        return called

    service = cast(Any, object.__new__(RingService))
    service.queue = BalloonQueue.REPORTING
    service._state, service._patience_ends = state, patience_ends
    service._observe = None
    service._memory = SimpleNamespace(device=None, read=None, write=None, files=[SimpleNamespace(fd=-1)])
    service._files = SimpleNamespace(signal_call=note("interrupt"))
    service._balloon = SimpleNamespace(
        serve=note("take", Outcome(DiscardPlan(discards=discards))), used_length=lambda *rest: 0
    )
    service._ring = SimpleNamespace(
        add_used=note("acknowledge"), needs_notification=lambda: True, unpop=note("put-back")
    )
    service._hand_over = SimpleNamespace(chain_served=lambda *rest: None)
    monkeypatch.setattr(ring_service, "punch_hole", note("discard", 0))
    service._serve_chain(Turn(handed_over=time.monotonic()), Chain(0, [], [], None), 0, time.monotonic())
    return done


def steps_of_the_model(*, stops: bool, puts_back: bool) -> list[str]:
    """Do the same with the model's worker."""
    done = list[str]()
    with World(WorldOptions()) as world:
        device: DeviceSide = world.device
        queue = world.queues[BalloonQueue.REPORTING]
        world.owners.note(PageEvent.ISOLATE, *RANGES)
        writable = [(pages.first * PAGE_SIZE, pages.length * PAGE_SIZE) for pages in RANGES]
        queue.post(PageEvent.REPORT, RANGES, (), writable)
        worker = device.run_worker(queue)
        points = next(worker)
        while points[0].ready():
            if stops and done == ["take"]:
                queue.service.move(ServiceEvent.STOP)
                points = device.discard_points(queue.service)
            point = points[-1] if puts_back else points[0]
            done.append(point.action)
            points = worker.send(cast(Any, SimpleNamespace(action=point.action)))
        worker.close()
    return done


def test_chain_is_discarded_then_acknowledged_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps_of_the_real_one(ServiceState.WORKING, time.monotonic(), monkeypatch)
    assert real == ["take", "discard", "discard", "acknowledge", "interrupt"]
    assert steps_of_the_model(stops=False, puts_back=False) == real[:-1]


def test_ring_that_stops_in_time_finishes_its_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps_of_the_real_one(ServiceState.STOPPING, time.monotonic() + 60, monkeypatch)
    assert steps_of_the_model(stops=True, puts_back=False) == real[:-1]


def test_ring_that_takes_too_long_to_stop_puts_its_chain_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps_of_the_real_one(ServiceState.STOPPING, time.monotonic() - 1, monkeypatch)
    assert real == ["take", "put-back"]
    assert steps_of_the_model(stops=True, puts_back=True) == real
