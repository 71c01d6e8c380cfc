"""``mom``: the balloon rules of the Memory Overcommitment Manager (oVirt, ``doc/balloon.rules``).

Under pressure (free memory of the host below ``pressure_threshold``) every guest shrinks, by at most
``max_balloon_change_percent`` of what it has, towards what it uses and a share of free memory. The share falls with the
host's free memory. When that is critical the share is negative, so that guests swap. Without pressure guests grow back
by the same step. Changes smaller than ``min_balloon_change_percent`` are left out. What a guest uses is an average over
``sample_history_length`` samples, as is the host's free memory.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from host.policy.observation import Observation, VmView
from host.policy.parameters import PerVm, interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import balloon_for, free_bytes, size_of

CRITICAL_SHARE = -0.05
"""The free share that a guest is left with when the host has no free memory at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomParameters:
    """MOM's constants. ``balloon_min`` is a share of each virtual machine's memory."""

    interval: float = interval(10.0)
    pressure_threshold: float = parameter(0.20, "guests shrink below this free share of the host", least=1e-6, most=1)
    pressure_critical: float = parameter(0.05, "guests are made to swap below this free share", least=0, most=1)
    min_guest_free_percent: float = parameter(0.20, "free share that a guest likes to have", least=0, most=1)
    max_balloon_change_percent: float = parameter(0.05, "largest change at once, of what it has", least=0, most=1)
    min_balloon_change_percent: float = parameter(0.0025, "smaller changes are left out", least=0, most=1)
    balloon_min: PerVm = parameter(PerVm(1.0), "share of memory above which a guest may always shrink", least=0, most=1)
    sample_history_length: int = parameter(10, "samples in an average", least=1, most=1000)


class _History:
    """The last samples of one quantity, and their average."""

    def __init__(self, length: int) -> None:
        self._samples: deque[int] = deque(maxlen=length)

    def add(self, sample: int) -> float:
        self._samples.append(sample)
        return sum(self._samples) / len(self._samples)


class Mom:
    """Shrinks all guests alike while the host is short of memory, and lets them grow back afterwards."""

    name = "mom"

    def __init__(self, parameters: MomParameters = MomParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._host_free = _History(parameters.sample_history_length)
        self._used: dict[str, _History] = {}

    def decide(self, seen: Observation) -> Decision:
        """Return a new target for each guest that is to change."""
        self._used = {name: history for name, history in self._used.items() if name in seen.vms}
        free = self._host_free.add(seen.host.free_bytes) / max(seen.host.budget_bytes, 1)
        pressure = free < self.parameters.pressure_threshold
        actions = []
        for vm in seen.vms.values():
            unused = free_bytes(vm)
            if unused is None:
                continue
            history = self._used.setdefault(vm.name, _History(self.parameters.sample_history_length))
            used = history.add(size_of(vm) - unused)
            size = self._shrunk(vm, used, free) if pressure else self._grown(vm, used)
            if size is not None:
                actions.append(SetBalloon(vm.name, balloon_for(vm, size)))
        return Decision(
            tuple(actions),
            f"host free {free:.1%} {'below' if pressure else 'at least'} pressure_threshold "
            f"{self.parameters.pressure_threshold:.0%}: {'shrink' if pressure else 'grow'} {_sizes(actions, seen.vms)}",
        )

    def _shrunk(self, vm: VmView, used: float, host_free: float) -> float | None:
        constants = self.parameters
        if host_free <= constants.pressure_critical:
            share = CRITICAL_SHARE + host_free
        else:
            share = constants.min_guest_free_percent * host_free / constants.pressure_threshold
        size = max(size_of(vm) * (1 - constants.max_balloon_change_percent), self._least(vm, used, share))
        return size if size <= size_of(vm) and self._is_big_enough(vm, size) else None

    def _grown(self, vm: VmView, used: float) -> float | None:
        constants = self.parameters
        if size_of(vm) >= vm.memory_bytes:
            return None
        size = min(size_of(vm) * (1 + constants.max_balloon_change_percent), vm.memory_bytes)
        size = max(size, self._least(vm, used, constants.min_guest_free_percent))
        return size if self._is_big_enough(vm, size) else None

    def _least(self, vm: VmView, used: float, share: float) -> float:
        # MOM takes the lesser of both: a guest above its minimum may shrink, whatever it uses.
        return min(self.parameters.balloon_min.of(vm.name) * vm.memory_bytes, used + share * size_of(vm))

    def _is_big_enough(self, vm: VmView, size: float) -> bool:
        return abs(size - size_of(vm)) > self.parameters.min_balloon_change_percent * size_of(vm)


def _sizes(actions: list[SetBalloon], vms: Mapping[str, VmView]) -> str:
    named = [f"{action.vm} to {(vms[action.vm].memory_bytes - action.size) >> 20}M" for action in actions]
    return ", ".join(named) if named else "no guest"
