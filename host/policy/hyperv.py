"""``hyperv``: Dynamic Memory of Hyper-V, as its documentation describes it.

The demand of a machine is what its programs have committed. It is to have the demand and a ``memory_buffer`` of so many
percent on top, from its minimum to its maximum. Pressure is the demand in percent of what a machine has. When the host
has too little for all, the buffer is given up, and what there is above the minima is shared by ``memory_weight``.

A Linux guest's statistics do not tell what is committed, so the demand is what is not available (MemAvailable): page
cache is not counted.
"""

from dataclasses import dataclass

from host.policy.observation import Observation, VmView
from host.policy.parameters import PerVm, interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import available_bytes, balloon_for, most_balloon, size_of, whole_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervParameters:
    """The settings of a virtual machine with Dynamic Memory; minimum and maximum are shares of its memory.

    How often the balancer works is not published: ``interval`` is ours."""

    interval: float = interval(5.0)
    memory_buffer: float = parameter(20.0, "percent of the demand on top of it", least=5, most=2000)
    memory_weight: PerVm = parameter(PerVm(5000), "who gets memory when it is short", least=1, most=10000)
    minimum_memory: PerVm = parameter(PerVm(0.25), "least share of its memory that a machine has", least=0, most=1)
    maximum_memory: PerVm = parameter(PerVm(1.0), "largest share of its memory that a machine has", least=0, most=1)


@dataclass(frozen=True, slots=True)
class _Ask:
    """What one machine asks for, in bytes."""

    vm: VmView
    least: int
    most: int
    demand: int
    weight: float


class Hyperv:
    """Gives each machine its demand and a buffer, and by weight what there is of it in a shortage."""

    name = "hyperv"

    def __init__(self, parameters: HypervParameters = HypervParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval

    def decide(self, seen: Observation) -> Decision:
        """Return the target of every machine whose target is another one now."""
        asks = [ask for vm in seen.vms.values() if (ask := self._ask(vm)) is not None]
        known = {ask.vm.name for ask in asks}
        unknown = sum(size_of(vm) for vm in seen.vms.values() if vm.name not in known)
        room = seen.host.budget_bytes - unknown
        sizes = {ask.vm.name: float(ask.most) for ask in asks}
        short = sum(sizes.values()) > room
        if short:
            sizes = _share_out(asks, room)
        actions, trace = [], []
        for ask in asks:
            balloon = balloon_for(ask.vm, sizes[ask.vm.name])
            trace.append(f"{ask.vm.name} {100 * ask.demand / size_of(ask.vm):.0f}%")
            if balloon != ask.vm.target_bytes:
                actions.append(SetBalloon(ask.vm.name, balloon))
        why = "shortage, shared by weight" if short else "demand and buffer fit the host"
        return Decision(tuple(actions), f"{why}; pressure: {', '.join(trace) or 'no machine says'}")

    def _ask(self, vm: VmView) -> _Ask | None:
        available = available_bytes(vm)
        if available is None:
            return None
        demand = size_of(vm) - available
        least = int(self.parameters.minimum_memory.of(vm.name) * vm.memory_bytes)
        least = max(least, vm.memory_bytes - most_balloon(vm))
        most = max(int(self.parameters.maximum_memory.of(vm.name) * vm.memory_bytes), least)
        wanted = whole_pages(demand * (1 + self.parameters.memory_buffer / 100))
        wanted = min(max(wanted, least), most)
        return _Ask(vm, least, wanted, demand, self.parameters.memory_weight.of(vm.name))


def _share_out(asks: list[_Ask], room: int) -> dict[str, float]:
    # All have their minimum. What is left goes by weight, to those whose wish is not yet fulfilled.
    sizes = {ask.vm.name: float(ask.least) for ask in asks}
    left = room - sum(sizes.values())
    open_asks = [ask for ask in asks if ask.most > ask.least]
    while left > 0 and open_asks:
        unit = left / sum(ask.weight for ask in open_asks)
        full = [ask for ask in open_asks if ask.most - sizes[ask.vm.name] <= unit * ask.weight]
        if not full:
            for ask in open_asks:
                sizes[ask.vm.name] += unit * ask.weight
            break
        for ask in full:
            left -= ask.most - sizes[ask.vm.name]
            sizes[ask.vm.name] = float(ask.most)
        open_asks = [ask for ask in open_asks if ask not in full]
    return sizes
