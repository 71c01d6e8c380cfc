"""``proxmox``: the automatic ballooning of Proxmox VE (``PVE/AutoBalloon.pm``, ``PVE/Service/pvestatd.pm``).

Every 10 s the host's use is brought towards ``ballooning_target`` percent of its memory. What is missing or left over
is the goal of the round; a goal below 10 MiB is ignored. It is shared out so that what machines have above their
``balloon_min`` is in proportion to their ``shares``, and no machine changes by more than ``maxchange`` at once. To
grow, machines with little free memory come first, to shrink those with enough: more than a quarter of their minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from host.policy.observation import Observation, VmView
from host.policy.parameters import PerVm, interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import balloon_for, free_bytes, size_of
from protocol.units import MIB

GOAL_LEAST: Final = 10 * MIB
"""A goal that is not larger, either way, is ignored."""

ENOUGH_FREE: Final = 0.25
"""A machine has enough if more than this share of its minimum is free."""

PASSES_MOST: Final = 100
"""Passes in which one goal is shared out: a bound for machines whose parts go to and fro by a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxmoxParameters:
    """The options ``ballooning-target``, ``shares`` and ``balloon`` (the minimum, here a share of memory)."""

    interval: float = interval(10.0)
    ballooning_target: float = parameter(80.0, "percent of the host's memory to use", least=1, most=100)
    maxchange: int = parameter(100 * MIB, "largest change of one machine in a round", least=4096, is_size=True)
    balloon_min: PerVm = parameter(PerVm(0.25), "least share of its memory that a machine is left", least=0.01, most=1)
    shares: PerVm = parameter(PerVm(1000), "weight of a machine, 0 to leave it alone", least=0, most=50000)


@dataclass(slots=True)
class _Machine:
    """A machine in a round: what it has, may have at least and at most, and is to have, in bytes."""

    vm: VmView
    size: int
    least: int
    shares: float
    wanted: int

    @property
    def most(self) -> int:
        return self.vm.memory_bytes


class Proxmox:
    """Keeps the use of the host at a target, by shares."""

    name = "proxmox"

    def __init__(self, parameters: ProxmoxParameters = ProxmoxParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval

    def decide(self, seen: Observation) -> Decision:
        """Return a new target for each machine that is to change in this round."""
        target = self.parameters.ballooning_target
        goal = int(seen.host.budget_bytes * target / 100) - seen.host.used_bytes
        why = f"goal {goal / MIB:+.0f}M towards ballooning_target {target:g}%"
        if abs(goal) <= GOAL_LEAST:
            return Decision((), f"{why}: too small, nothing to do")
        machines = [self._machine(vm) for vm in seen.vms.values() if self.parameters.shares.of(vm.name) > 0]
        first = [machine for machine in machines if _has_enough(machine) is (goal < 0)]
        rest = self._share_out(first, goal)
        if abs(rest) >= abs(goal):  # no progress: all machines are considered
            self._share_out(machines, rest)
        changed = [machine for machine in machines if machine.wanted != machine.size]
        named = ", ".join(f"{machine.vm.name} {(machine.wanted - machine.size) / MIB:+.0f}M" for machine in changed)
        actions = [SetBalloon(machine.vm.name, balloon_for(machine.vm, machine.wanted)) for machine in changed]
        return Decision(tuple(actions), f"{why}: {named or 'no machine can change'}")

    def _machine(self, vm: VmView) -> _Machine:
        least = int(self.parameters.balloon_min.of(vm.name) * vm.memory_bytes)
        return _Machine(vm, size_of(vm), least, self.parameters.shares.of(vm.name), size_of(vm))

    def _share_out(self, machines: Sequence[_Machine], goal: int) -> int:
        # Returns what is left of the goal. A machine at its bound leaves its part to the others, in a further pass.
        rest = goal
        left = list(machines)
        for _ in range(PASSES_MOST):
            before = [machine.wanted for machine in left]
            rest -= self._pass(left, is_to_grow=goal > 0, rest=rest)
            if rest == 0 or before == [machine.wanted for machine in left]:
                break
            left = [machine for machine in left if machine.wanted != machine.size]
        return rest

    def _pass(self, machines: Sequence[_Machine], *, is_to_grow: bool, rest: int) -> int:
        # Returns by how much all machines together have changed.
        shares = sum(machine.shares for machine in machines)
        above_least = sum(machine.wanted - machine.least for machine in machines) + rest
        change = 0
        for machine in machines:
            fair = machine.least + int(above_least / shares * machine.shares)
            desired = min(max(fair, machine.least), machine.most)
            if (is_to_grow and desired > machine.size) or desired < machine.size:
                step = min(max(desired - machine.size, -self.parameters.maxchange), self.parameters.maxchange)
                change += machine.size + step - machine.wanted
                machine.wanted = machine.size + step
        return change


def _has_enough(machine: _Machine) -> bool:
    free = free_bytes(machine.vm)
    return free is not None and free > machine.least * ENOUGH_FREE and machine.size >= machine.least
