"""When a policy decides in a real run, and what becomes of its faults."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from host.policy.observation import Observation
from host.policy.policy import Decision
from protocol.units import MIB
from scripts.scenario.real import live_policy
from scripts.scenario.real.live_policy import LivePolicy
from scripts.scenario.run_record import RunRecord
from scripts.scenario.scenario import Scenario, VmSpec
from tests.harness.processes import DEADLINE


class NoMachines:
    """A daemon that serves none."""

    def __init__(self, *_: Any) -> None:
        pass

    async def look(self) -> tuple[dict[Any, Any], int]:
        return {}, 0

    async def close(self) -> None:
        pass


class Faulty:
    name, interval = "faulty", 3600.0

    def __init__(self) -> None:
        self.asked = threading.Event()

    def decide(self, seen: Observation) -> Decision:
        self.asked.set()
        raise ValueError("enough")


def test_it_decides_at_the_begin_and_a_fault_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_policy, "Daemon", NoMachines)
    scenario = Scenario(
        name="s", title="s", budget_bytes=MIB, duration=1.0, vms=(VmSpec(name="a", memory_bytes=16 * MIB),)
    )
    record = RunRecord(scenario=scenario, policy="faulty", seed=0, is_virtual=False)
    run: Any = SimpleNamespace(record=record, now=0.25, budget_bytes=MIB, used_bytes=0, pressure=None)
    policy, said = Faulty(), list[str]()
    at_work = LivePolicy(policy, said.append)
    at_work.start(Path("unused"), run)
    assert policy.asked.wait(DEADLINE)
    at_work.stop()
    message = "policy faulty: ValueError: enough; the last decision stands"
    assert record.events == [{"t": 0.25, "event": "policy_fault", "side": "run", "message": message}]
    assert [(decision.t, decision.error) for decision in record.decisions] == [(0.25, "ValueError: enough")]
    assert said == []
