"""A policy's steps in a run: it is asked at its interval, contained, recorded, and obeyed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from host.policy.contained import ContainedPolicy, DecisionRecord
from host.policy.observation import Observation
from host.policy.policy import Action, Policy, SetBalloon
from scripts.scenario.run_record import RecordedDecision
from scripts.scenario.virtual.virtual_vm import Emit, VirtualVm

MOST_INPUTS: Final = 64
"""Of more machines than this only those that a decision concerns are recorded among its inputs."""


class PolicySteps:
    """Asks ``policy`` and carries out what it answers. After one that raises or answers nonsense the last decision
    stands, and ``emit`` takes an event about it."""

    def __init__(self, policy: Policy, emit: Emit) -> None:
        self.interval = max(0.001, float(policy.interval))
        self._policy = ContainedPolicy(policy, lambda line: emit("policy_fault", message=line))

    def step(self, seen: Observation, vms: Mapping[str, VirtualVm]) -> RecordedDecision:
        """Decide once for the machines ``vms``, which are those that were seen."""
        decision = self._policy.decide(seen)
        for action in decision.actions:
            _carry_out(action, vms[action.vm])
        return RecordedDecision(
            t=seen.now,
            policy=decision.policy,
            reason=decision.reason,
            inputs=_inputs(decision),
            actions=decision.actions,
            error=decision.problem,
        )


def _carry_out(action: Action, vm: VirtualVm) -> None:
    if isinstance(action, SetBalloon):
        vm.set_balloon(action.size)
    else:
        vm.reclaim(action.size)


def _inputs(decision: DecisionRecord) -> dict[str, Any]:
    seen = decision.seen
    if len(seen.vms) <= MOST_INPUTS:
        return decision.inputs()
    names = dict.fromkeys(action.vm for action in decision.actions)
    return {"now": seen.now, "host": asdict(seen.host), "vms": {name: asdict(seen.vms[name]) for name in names}}
