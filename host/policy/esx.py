"""``esx``: memory sharing of VMware ESX (Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002).

Free memory of the host puts it in a state: high, soft, hard or low, by parts of *minFree*. In the high state nothing is
taken, and what was taken is returned as far as the state stays high. From the soft state down, balloons take memory
until the host is in the high state again. It is taken from the machine that has paid the fewest shares for its pages,
where an idle page costs 1 / (1 - ``idle_tax``) times an active one:

    shares / (pages * (active + k * (1 - active))),    k = 1 / (1 - idle_tax)

The active part is estimated by samples, so that it rises at once and falls slowly. ESX samples random pages; here the
part of its memory is taken that a guest does not say to be available. Ballooning takes at most ``ctl_max_percent``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from host.policy.observation import Observation, VmView
from host.policy.parameters import PerVm, interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import available_bytes, balloon_for, bounded, most_balloon, size_of
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB

SLIDING_SCALE: Final = ((4 * GIB, 0.06), (8 * GIB, 0.04), (16 * GIB, 0.02))
"""*minFree*: 6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16 and 1 % of the rest."""

SOFT, HARD, LOW = 0.64, 0.32, 0.16
"""Below these parts of *minFree* a state begins."""

SHARES_PER_MIB: Final = 10
"""Shares of a machine with "normal" shares."""

CHUNKS: Final = 64
"""What is to be moved is moved in so many pieces, each from the machine that pays least by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EsxParameters:
    """The advanced settings ``Mem.BalancePeriod`` (``interval``), ``Mem.IdleTax``, ``Mem.SamplePeriod``,
    ``Mem.CtlMaxPercent`` and ``Mem.MinFreePct``."""

    interval: float = interval(15.0)
    idle_tax: float = parameter(75.0, "percent of idle memory that may be taken", least=0, most=99)
    sample_period: float = parameter(60.0, "seconds in which the active part falls by half", least=1)
    ctl_max_percent: float = parameter(65.0, "most percent of its memory that a balloon takes", least=0, most=100)
    min_free_pct: float = parameter(0.0, "percent of the host for minFree, 0: by the sliding scale", least=0, most=50)
    shares: PerVm = parameter(PerVm(0), "shares of a machine, 0: 10 for each MiB", least=0, most=1e9)
    reservation: PerVm = parameter(PerVm(0), "share of its memory that is never taken", least=0, most=1)


@dataclass(slots=True)
class _Activity:
    """Averages of the active share of one machine."""

    slow: float
    fast: float


@dataclass(slots=True)
class _Client:
    """A machine in a round: the bytes it is charged for, within its bounds, and its price."""

    vm: VmView
    shares: float
    active: float
    least: int
    charged: int

    def price(self, factor: float) -> float:
        """Return the shares per byte, idle memory charged ``factor`` times."""
        return self.shares / (max(self.charged, PAGE_SIZE) * (self.active + factor * (1 - self.active)))


class Esx:
    """Takes memory from whom it costs least, idle memory first."""

    name = "esx"

    def __init__(self, parameters: EsxParameters = EsxParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._activity: dict[str, _Activity] = {}
        self._last: float | None = None
        self._taking = False

    def decide(self, seen: Observation) -> Decision:
        """Return new targets for the machines that give, or for those that get back."""
        clients = self._clients(seen)
        min_free = self.min_free(seen.host.budget_bytes)
        free = seen.host.free_bytes
        state = _state(free, min_free)
        # Hysteresis: what began in the soft state goes on to the high one.
        self._taking = state != "high" and (self._taking or state != "clear")
        if self._taking:
            sizes = self._take(clients, min_free - free)
        elif state == "high":
            sizes = self._return(clients, free - min_free)
        else:
            sizes = {}
        actions = [
            SetBalloon(name, balloon)
            for name, size in sizes.items()
            if (balloon := balloon_for(seen.vms[name], size)) != seen.vms[name].target_bytes
        ]
        moved = ", ".join(
            f"{action.vm} to {(seen.vms[action.vm].memory_bytes - action.size) >> 20}M" for action in actions
        )
        active = ", ".join(f"{client.vm.name} {client.active:.0%}" for client in clients)
        why = f"state {state}, free {free >> 20}M of minFree {min_free >> 20}M, active: {active or 'unknown'}"
        return Decision(tuple(actions), f"{why}: {moved or 'nothing to move'}")

    def min_free(self, budget: int) -> int:
        """Return the bytes of ``budget`` that are to be free."""
        if self.parameters.min_free_pct:
            return int(budget * self.parameters.min_free_pct / 100)
        wanted, left = 0.0, budget
        for part, share in SLIDING_SCALE:
            wanted += min(left, part) * share
            left -= min(left, part)
        return int(wanted + left * 0.01)

    def _clients(self, seen: Observation) -> list[_Client]:
        elapsed = 0.0 if self._last is None else max(seen.now - self._last, 0.0)
        self._last = seen.now
        self._activity = {name: activity for name, activity in self._activity.items() if name in seen.vms}
        clients = []
        for vm in seen.vms.values():
            available = available_bytes(vm)
            if available is None or vm.memory_bytes < 2 * PAGE_SIZE:
                continue
            active = self._active(vm, 1 - available / size_of(vm), elapsed)
            taken = min(most_balloon(vm), int(self.parameters.ctl_max_percent / 100 * vm.memory_bytes))
            least = max(vm.memory_bytes - taken, int(self.parameters.reservation.of(vm.name) * vm.memory_bytes))
            backed = size_of(vm) if vm.host_backed_bytes is None else min(vm.host_backed_bytes, size_of(vm))
            shares = self.parameters.shares.of(vm.name) or SHARES_PER_MIB * vm.memory_bytes / MIB
            clients.append(_Client(vm, shares, active, least, backed))
        return clients

    def _active(self, vm: VmView, sample: float, elapsed: float) -> float:
        # The largest of a slow average, a fast one and the sample itself: it rises at once and falls slowly.
        activity = self._activity.setdefault(vm.name, _Activity(sample, sample))
        slow = 0.5 ** (elapsed / self.parameters.sample_period)
        fast = 0.5 ** (4 * elapsed / self.parameters.sample_period)
        activity.slow = slow * activity.slow + (1 - slow) * sample
        activity.fast = fast * activity.fast + (1 - fast) * sample
        return min(max(activity.slow, activity.fast, sample, 0.0), 1.0)

    def _take(self, clients: list[_Client], wanted: int) -> Mapping[str, int]:
        # Each piece comes from the machine with the lowest price by then.
        factor = 1 / (1 - self.parameters.idle_tax / 100)
        before = {client.vm.name: client.charged for client in clients}
        _move(
            wanted,
            lambda piece: min(
                (client for client in clients if client.charged - piece >= client.least),
                key=lambda client: client.price(factor),
                default=None,
            ),
            sign=-1,
        )
        return {client.vm.name: client.charged for client in clients if client.charged < before[client.vm.name]}

    def _return(self, clients: list[_Client], room: int) -> Mapping[str, int]:
        # Each piece goes to the machine with the highest price by then.
        factor = 1 / (1 - self.parameters.idle_tax / 100)
        ballooned = [client for client in clients if client.vm.target_bytes > 0]
        for client in ballooned:
            client.charged = client.vm.memory_bytes - bounded(client.vm, client.vm.target_bytes)
        wanted = sum(client.vm.memory_bytes - client.charged for client in ballooned)
        _move(
            min(wanted, room),
            lambda piece: max(
                (client for client in ballooned if client.charged + piece <= client.vm.memory_bytes),
                key=lambda client: client.price(factor),
                default=None,
            ),
            sign=1,
        )
        if room >= wanted:
            return {client.vm.name: client.vm.memory_bytes for client in ballooned}
        return {client.vm.name: client.charged for client in ballooned}


def _move(wanted: int, choose: Callable[[int], _Client | None], *, sign: int) -> None:
    piece = max(wanted // CHUNKS, PAGE_SIZE)
    for _ in range(min(CHUNKS, max(wanted, 0) // piece)):
        client = choose(piece)
        if client is None:
            return
        client.charged += sign * piece


def _state(free: int, min_free: int) -> str:
    for name, part in (("low", LOW), ("hard", HARD), ("soft", SOFT), ("clear", 1.0)):
        if free < part * min_free:
            return name
    return "high"
