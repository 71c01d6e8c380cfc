"""``squeezed``: the ballooning policy of Xen's squeezed (xapi-project, "Squeezed: ballooning policy").

Every domain has a range, from ``dynamic_min`` to ``dynamic_max``. All domains that cooperate get the same proportion of
their range, the largest with which the memory of all fits the host. The proportion is the factor gamma: 0 leaves all at
their minimum, 1 gives all their maximum. A domain that is not at its target and has not moved for ``inactive_after``
seconds is inactive: it counts with what it has, and is asked again.
"""

from dataclasses import dataclass

from host.policy.observation import Observation, VmView
from host.policy.parameters import PerVm, interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import balloon_for, size_of
from protocol.units import KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SqueezedParameters:
    """The ranges of the domains, as shares of their memory, and the constants of squeezed."""

    interval: float = interval(30.0)
    dynamic_min: PerVm = parameter(PerVm(0.25), "least share of its memory that a domain is left", least=0, most=1)
    dynamic_max: PerVm = parameter(PerVm(1.0), "largest share of its memory that a domain has", least=0, most=1)
    target_host_free_mem: int = parameter(9216 * KIB, "memory of the host kept free", least=0, is_size=True)
    inactive_after: float = parameter(5.0, "seconds without a move until a domain is inactive", least=0)


@dataclass(slots=True)
class _Progress:
    """The size that a domain had last, and since when it has had it."""

    size: int
    since: float


class Squeezed:
    """Gives all domains one proportion of their ranges."""

    name = "squeezed"

    def __init__(self, parameters: SqueezedParameters = SqueezedParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._progress: dict[str, _Progress] = {}

    def decide(self, seen: Observation) -> Decision:
        """Return the target of every domain whose target is another one now."""
        self._progress = {name: progress for name, progress in self._progress.items() if name in seen.vms}
        inactive = [vm for vm in seen.vms.values() if self._is_inactive(vm, seen.now)]
        active = [vm for vm in seen.vms.values() if vm not in inactive]
        room = seen.host.budget_bytes - self.parameters.target_host_free_mem - sum(map(size_of, inactive))
        least = sum(self._least(vm) for vm in active)
        total_range = sum(self._most(vm) - self._least(vm) for vm in active)
        gamma = 1.0 if total_range <= 0 else min(max((room - least) / total_range, 0.0), 1.0)
        actions = []
        for vm in seen.vms.values():
            size = self._least(vm) + gamma * (self._most(vm) - self._least(vm))
            balloon = balloon_for(vm, size)
            if balloon != vm.target_bytes:
                actions.append(SetBalloon(vm.name, balloon))
        why = f"gamma {gamma:.3f}"
        if room < least:
            why += ", the minima do not fit the host"
        if inactive:
            why += f", inactive: {', '.join(vm.name for vm in inactive)}"
        return Decision(tuple(actions), why)

    def _is_inactive(self, vm: VmView, now: float) -> bool:
        size = size_of(vm)
        progress = self._progress.get(vm.name)
        if progress is None or progress.size != size or vm.balloon_bytes == vm.target_bytes:
            self._progress[vm.name] = _Progress(size, now)
            return False
        return now - progress.since >= self.parameters.inactive_after

    def _least(self, vm: VmView) -> float:
        return self.parameters.dynamic_min.of(vm.name) * vm.memory_bytes

    def _most(self, vm: VmView) -> float:
        return max(self.parameters.dynamic_max.of(vm.name) * vm.memory_bytes, self._least(vm))
