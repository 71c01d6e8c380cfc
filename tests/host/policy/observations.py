"""Observations for tests of policies: machines and a host in few words."""

from typing import Any

from host.policy.observation import HostView, Observation, VmView
from host.policy.policy import Decision, Reclaim, SetBalloon
from host.policy.vm_memory import most_balloon
from protocol.units import GIB


def machine(name: str, memory: int = 4 * GIB, **fields: Any) -> VmView:
    """Return the view of a machine; what is not given is empty or unknown."""
    fields.setdefault("target_bytes", fields.get("balloon_bytes", 0))
    return VmView(name=name, memory_bytes=memory, **fields)


def seen(*vms: VmView, budget: int = 16 * GIB, used: int = 0, now: float = 0.0, pressure: float | None = None) -> Any:
    """Return an observation of these machines."""
    host = HostView(budget_bytes=budget, used_bytes=used, pressure=pressure)
    return Observation(now=now, host=host, vms={vm.name: vm for vm in vms})


def balloons(decision: Decision) -> dict[str, int]:
    """Return the balloons that are asked for, by machine."""
    return {action.vm: action.size for action in decision.actions if isinstance(action, SetBalloon)}


def left(decision: Decision, *vms: VmView) -> dict[str, int]:
    """Return the bytes that the balloons leave to these machines."""
    sizes = {vm.name: vm.memory_bytes for vm in vms}
    return {name: sizes[name] - size for name, size in balloons(decision).items()}


def reclaims(decision: Decision) -> list[str]:
    """Return the machines to reclaim from, in order."""
    return [action.vm for action in decision.actions if isinstance(action, Reclaim)]


def check(decision: Decision, observed: Observation) -> None:
    """Check that a decision may be carried out: machines that are there, sizes within bounds, one line of reason."""
    assert isinstance(decision, Decision)
    assert decision.reason
    assert "\n" not in decision.reason
    assert len(balloons(decision)) == sum(isinstance(action, SetBalloon) for action in decision.actions)
    for action in decision.actions:
        vm = observed.vms[action.vm]
        if isinstance(action, SetBalloon):
            assert type(action.size) is int
            assert 0 <= action.size <= most_balloon(vm)
            assert action.size % 4096 == 0
        else:
            assert action.size is None or action.size > 0
