"""A policy's steps in a run: it is asked at its interval, contained, recorded, and obeyed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from host.policy.observation import Observation
from host.policy.policy import Action, Decision, Policy, Reclaim, SetBalloon
from scripts.scenario.run_record import RecordedDecision
from scripts.scenario.virtual.virtual_vm import VirtualVm

MOST_INPUTS: Final = 64
"""Of more machines than this only those that a decision concerns are recorded among its inputs."""


class PolicySteps:
    """Asks ``policy`` and carries out what it answers. One that raises or answers nonsense changes nothing."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.interval = max(0.001, float(policy.interval))
        self.actions = 0

    def step(self, seen: Observation, vms: Mapping[str, VirtualVm]) -> RecordedDecision:
        """Decide once. Only machines that are alive are in ``vms``."""
        try:
            decision = self._policy.decide(seen)
            problem = _nonsense(decision, vms)
        except Exception as error:  # a policy may be anybody's code
            decision, problem = Decision(), f"{type(error).__name__}: {error}"
        actions = () if problem is not None else tuple(decision.actions)
        for action in actions:
            _carry_out(action, vms[action.vm])
        return RecordedDecision(
            t=seen.now,
            policy=self._policy.name,
            reason=str(decision.reason) if problem is None else "",
            inputs=_inputs(seen, actions),
            actions=actions,
            error=problem,
        )


def _carry_out(action: Action, vm: VirtualVm) -> None:
    if isinstance(action, SetBalloon):
        vm.set_balloon(action.size)
    else:
        vm.reclaim(action.size)


def _nonsense(decision: object, vms: Mapping[str, VirtualVm]) -> str | None:
    # What is wrong with an answer, None if nothing is.
    if not isinstance(decision, Decision) or not isinstance(decision.actions, Sequence):
        return f"answered {type(decision).__name__}, not a decision with a sequence of actions"
    answers: Sequence[object] = decision.actions
    for action in answers:
        if not isinstance(action, SetBalloon | Reclaim):
            return f"answered the action {action!r}"
        if action.vm not in vms:
            return f"answered an action for {action.vm!r}, which is not running"
        size: object = action.size
        if isinstance(action, Reclaim) and size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            return f"answered the size {size!r} for {action.vm}"
    return None


def _inputs(seen: Observation, actions: Sequence[Action]) -> dict[str, Any]:
    names = list(seen.vms)
    if len(names) > MOST_INPUTS:
        names = list(dict.fromkeys(action.vm for action in actions))
    return {"host": asdict(seen.host), "vms": {name: asdict(seen.vms[name]) for name in names}}
