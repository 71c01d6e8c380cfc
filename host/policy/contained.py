"""Runs one decision of a policy so that whatever it does harms nothing: a user's policy may be wrong.

A policy that raises, or whose answer is not a decision (a machine that is not there, a negative size, a balloon that
leaves a machine less than the reserve), costs one line in the log. The last decision stands: its balloons are asked for
again as far as they are still possible, its reclaims are not. A balloon grows in one decision by what is free in the
guest and by at most :attr:`Limits.step` of its memory; it may shrink at once. Every decision is recorded
with all that it was made from.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from host.policy.observation import Observation
from host.policy.policy import Action, Decision, Policy, Reclaim, SetBalloon
from host.policy.vm_memory import RESERVE_BYTES, free_bytes, most_balloon, whole_pages

LINE_MOST = 2000
"""Characters of a reason that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What no decision may exceed: ``reserve`` bytes are left to a machine (or half of its memory), and a balloon grows
    by at most what is free and the share ``step`` of the memory at once."""

    reserve: int = RESERVE_BYTES
    step: float = 0.25


class NonsenseError(ValueError):
    """An answer that is not a decision about the machines that were seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One decision: when, by whom, why, from which observation, and what is done.

    ``problem`` says what was wrong with the policy's answer, in which case ``actions`` are those of the last decision.
    ``limited`` are the machines whose step was cut.
    """

    t: float
    policy: str
    reason: str
    seen: Observation
    actions: tuple[Action, ...]
    problem: str | None = None
    limited: tuple[str, ...] = field(default=())

    def inputs(self) -> dict[str, Any]:
        """Return the observation as JSON has it: ``host`` and, by name, ``vms``."""
        host = {**dataclasses.asdict(self.seen.host), "free_bytes": self.seen.host.free_bytes}
        vms = {}
        for name, vm in self.seen.vms.items():
            vms[name] = dataclasses.asdict(vm)
            del vms[name]["name"]
        return {"now": self.seen.now, "host": host, "vms": vms}

    def actions_as_dicts(self) -> list[dict[str, Any]]:
        """Return the actions as JSON has them: ``action`` is ``balloon`` or ``reclaim``."""
        names = {SetBalloon: "balloon", Reclaim: "reclaim"}
        return [{"action": names[type(action)], **dataclasses.asdict(action)} for action in self.actions]

    def as_dict(self) -> dict[str, Any]:
        """Return one line of ``decisions.jsonl``."""
        line: dict[str, Any] = {"t": self.t, "policy": self.policy, "reason": self.reason}
        if self.problem is not None:
            line["problem"] = self.problem
        if self.limited:
            line["limited"] = list(self.limited)
        return {**line, "inputs": self.inputs(), "actions": self.actions_as_dicts()}


class ContainedPolicy:
    """A policy with a fence around it. ``log`` takes one line about each new fault."""

    def __init__(self, policy: Policy, log: Callable[[str], None], limits: Limits = Limits()) -> None:
        self.policy = policy
        self.limits = limits
        self._log = log
        self._name = str(policy.name)  # now: it is the policy's own, and may change or raise later
        self._last: tuple[Action, ...] = ()
        self._problem: str | None = None

    def decide(self, seen: Observation) -> DecisionRecord:
        """Return what the policy decides, or what stands if it does not. Raises nothing that the policy raises."""
        name = self._name
        try:
            actions, reason = self._checked(self.policy.decide(seen), seen)
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:  # sys.exit in a policy, say: a fault of it, which ends no run
            return self._fallen_back(name, _problem(error), seen)
        self._problem = None
        self._last = actions
        actions, limited = self._limited(actions, seen)
        return DecisionRecord(t=seen.now, policy=name, reason=reason, seen=seen, actions=actions, limited=limited)

    def _fallen_back(self, name: str, problem: str, seen: Observation) -> DecisionRecord:
        if problem != self._problem:
            self._log(f"policy {name}: {problem}; the last decision stands")
        self._problem = problem
        still = [
            SetBalloon(action.vm, min(action.size, most_balloon(seen.vms[action.vm], self.limits.reserve)))
            for action in self._last
            if isinstance(action, SetBalloon) and action.vm in seen.vms
        ]
        actions, limited = self._limited(tuple(still), seen)
        reason = "the last decision stands"
        return DecisionRecord(
            t=seen.now, policy=name, reason=reason, seen=seen, actions=actions, problem=problem, limited=limited
        )

    def _checked(self, answer: object, seen: Observation) -> tuple[tuple[Action, ...], str]:
        if not isinstance(answer, Decision):
            raise NonsenseError(f"decide() returned {_shown(answer)}, not a Decision")
        if not isinstance(answer.reason, str):
            raise NonsenseError(f"the reason is {_shown(answer.reason)}, not a string")
        actions: list[Action] = []
        ballooned: set[str] = set()
        for action in answer.actions:
            if not isinstance(action, SetBalloon | Reclaim):
                raise NonsenseError(f"{_shown(action)} is not an action")
            if action.vm not in seen.vms:
                raise NonsenseError(f"unknown virtual machine {_shown(action.vm)}")
            if isinstance(action, SetBalloon):
                if action.vm in ballooned:
                    raise NonsenseError(f"two balloons for {action.vm}")
                ballooned.add(action.vm)
            self._check_size(action, seen)
            actions.append(action)
        return tuple(actions), " ".join(answer.reason.split())[:LINE_MOST]

    def _check_size(self, action: Action, seen: Observation) -> None:
        if isinstance(action, Reclaim) and action.size is None:
            return
        if not isinstance(action.size, int) or isinstance(action.size, bool):
            raise NonsenseError(f"a size of {_shown(action.size)} for {action.vm}, not whole bytes")
        if action.size < 0:
            raise NonsenseError(f"a negative size for {action.vm}: {action.size}")
        most = most_balloon(seen.vms[action.vm], self.limits.reserve)
        if isinstance(action, SetBalloon) and action.size > most:
            raise NonsenseError(f"a balloon of {action.size} bytes for {action.vm}, which may have {most} at most")

    def _limited(self, actions: tuple[Action, ...], seen: Observation) -> tuple[tuple[Action, ...], tuple[str, ...]]:
        done: list[Action] = []
        limited: list[str] = []
        for action in actions:
            if isinstance(action, SetBalloon):
                vm = seen.vms[action.vm]
                most = whole_pages(vm.balloon_bytes + (free_bytes(vm) or 0) + self.limits.step * vm.memory_bytes)
                if action.size > most:
                    limited.append(action.vm)
                    action = SetBalloon(action.vm, most)
            done.append(action)
        return tuple(done), tuple(limited)


def _problem(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:LINE_MOST]
    except (Exception, SystemExit):  # an error of the user's own
        text = "an error that has no text"
    return text if isinstance(error, NonsenseError) else f"{type(error).__name__}: {text}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (Exception, SystemExit):
        text = f"an object of {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
