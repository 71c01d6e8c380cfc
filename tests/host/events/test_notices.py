"""What clients of the control socket are told of a machine."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

import host.events.notices
from host.events.metrics import VmMetrics
from host.events.notices import Notices
from tests.harness.processes import DEADLINE


class Told:
    """Notices of a machine, and what was told and written."""

    def __init__(self) -> None:
        self.metrics = VmMetrics()
        self.notices = Notices(self.metrics)
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.written: list[str] = []
        self.heard = asyncio.Event()
        self.notices.tell = self.hear

    def hear(self, name: str, data: Mapping[str, Any]) -> None:
        self.told.append((name, data))
        self.heard.set()

    def emit(self, event: str, **fields: object) -> None:
        self.written.append(event)


def test_events_are_written_and_those_of_the_list_are_told() -> None:
    told = Told()
    emit = told.notices.passing_on(told.emit)
    emit("queue_stopped", queue=2, reason="descriptor 7 follows itself")
    emit("refused", t=5.0, reason="unaligned", gpa=1, bytes=2, ranges=3)
    emit("balloon", actual_bytes=5, target_bytes=6)
    assert told.written == ["queue_stopped", "refused", "balloon"]
    assert told.told == [
        ("VM_QUEUE_STOPPED", {"queue": 2, "reason": "descriptor 7 follows itself"}),
        ("VM_REFUSED", {"reason": "unaligned", "gpa": 1, "bytes": 2, "ranges": 3}),
    ]


@pytest.mark.asyncio
async def test_traffic_is_told_as_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.events.notices, "TRAFFIC_INTERVAL", 0.01)
    told = Told()
    for _ in range(3):
        told.metrics.reports += 1
        told.metrics.reported_bytes += 4096
        told.notices.chain_served()
    await asyncio.wait_for(told.heard.wait(), DEADLINE)
    told.metrics.discarded_bytes += 7
    told.notices.close()
    zero = {"discarded-bytes": 0, "inflated-pages": 0, "deflated-pages": 0, "hinted-bytes": 0}
    assert told.told == [
        ("VM_TRAFFIC", zero | {"reports": 3, "reported-bytes": 3 * 4096}),
        ("VM_TRAFFIC", zero | {"reports": 0, "reported-bytes": 0, "discarded-bytes": 7}),
    ]
    told.notices.chain_served()
    told.notices.flush()
    assert len(told.told) == 2
