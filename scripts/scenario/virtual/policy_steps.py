"""A policy's steps in a run: it is asked at its interval, contained, recorded, and obeyed."""

import threading
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


class GivenUpError(Exception):
    """The policy has answered after its run was given up."""


class PolicySteps:
    """Asks ``policy`` and carries out what it answers. After one that raises or answers nonsense the last decision
    stands, and ``emit`` takes an event about it."""

    def __init__(self, policy: Policy, emit: Emit) -> None:
        self.interval = max(0.001, float(policy.interval))
        self._policy = ContainedPolicy(policy, self._tell)
        self._emit = emit
        self._turn = threading.Lock()
        self._is_deciding = self._given_up = False

    def give_up(self) -> bool:
        """Called in another thread than :meth:`step`: wait no more for a decision. Return whether one is waited for;
        then :meth:`step` changes nothing any more, and raises GivenUpError if the policy answers."""
        with self._turn:
            self._given_up = self._given_up or self._is_deciding
            return self._given_up

    def _tell(self, line: str) -> None:
        if not self._given_up:
            self._emit("policy_fault", message=line)

    def _decide(self, seen: Observation) -> DecisionRecord:
        self._is_deciding = True
        try:
            return self._policy.decide(seen)
        finally:
            with self._turn:
                self._is_deciding = False
                if self._given_up:
                    raise GivenUpError

    def step(self, seen: Observation, vms: Mapping[str, VirtualVm]) -> RecordedDecision:
        """Decide once for the machines ``vms``, which are those that were seen.

        Raises:
            GivenUpError: nothing waits for the decision any more.
        """
        decision = self._decide(seen)
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
