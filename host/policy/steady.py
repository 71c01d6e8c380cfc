"""``steady``: our own policy. It takes what guests do not use while they do not need it, and holds none of it.

* **Shortage.** The host is short when, as fast as it filled since the last look, it would have less than ``low_free``
  of the budget free ``ahead`` seconds from now; or when programs wait (``pressure_on``) and less than ``high_free`` is
  free. Waiting alone says little: on a host with memory free it is for pages that guests were given back. It ends once
  ``high_free`` will be free: two thresholds, so that it does not swing. What is missing until then is what is taken.
* **Free memory.** A guest uses the same memory again and again, and waits for what was taken from it in between. So
  what counts as spare is what the host backs beyond the most that the guest has used in the last ``peak_window``
  seconds, and the guest has to be idle for ``idle_after``. Where reporting is not at work, more is: after
  ``free_after`` seconds of idleness, twice the delay of reporting, half of the free memory is still backed.
* **Page cache.** That of an idle guest, after ``cache_idle_after`` on an empty host and ``idle_after`` on a full one: a
  file may be read again, and the emptier the host, the less its memory is worth to others. In a shortage that of
  every guest.
* **What.** First what is free in the guest and still backed by the host: fragments below the reporting order, what the
  watermarks withhold. One ``reclaim`` returns it. Then page cache, by a pulse of the balloon: it grows by what is free
  and by a step, and is empty again as soon as it got there. The guest has all of its memory back, unbacked, and no
  balloon stands in the way of a program that starts.
* **How far.** ``floor`` bytes of page cache stay, and a pulse leaves ``left_available`` of the memory available.
* **How fast.** A step is ``step_part`` of the memory, every ``pace`` seconds from one guest, from ``at_once`` guests in
  one decision. In a shortage it is what is missing, if that is more, and nothing waits for the pace.
* **Back-off.** Where more than ``refault_share`` of what was taken has to be provided again within ``refault_window``
  seconds, the guest is left alone for ``back_off`` seconds, twice as long each time, and its floor rises by what came
  back. A step without refaults halves the time again.
* **Evidence.** Nothing is taken on statistics older than ``stale_after`` seconds.
"""

from dataclasses import dataclass
from typing import Final

from host.policy.activity import Activity, IdleTime
from host.policy.observation import HostView, Observation, VmView
from host.policy.parameters import interval, parameter
from host.policy.policy import Action, Decision, Reclaim, SetBalloon
from host.policy.vm_memory import available_bytes, bounded, free_bytes, reclaimable_cache, unreturned_bytes, used_bytes
from protocol.memory import PAGE_SIZE
from protocol.units import MIB

FRUITFUL: Final = 0.75
"""A step after which more than this part of what it was to bring is still there brought nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyParameters:
    """When, how much and how fast."""

    interval: float = interval(2.0)
    idle_after: float = parameter(20.0, "seconds of idleness before anything is taken", least=0)
    free_after: float = parameter(4.0, "seconds of idleness before free memory is that nothing reports", least=0)
    peak_window: float = parameter(120.0, "seconds for which the most that a guest has used counts", least=0)
    cache_idle_after: float = parameter(600.0, "seconds before page cache is, while the host is empty", least=0)
    ahead: float = parameter(5.0, "seconds for which the host's memory has to suffice as fast as it fills", least=0)
    pressure_on: float = parameter(
        5.0, "percent of waiting (some avg10) from which the host is short", least=0, most=100
    )
    low_free: float = parameter(0.08, "free share of the budget below which the host is short", least=0, most=1)
    high_free: float = parameter(0.16, "free share above which it is not any more", least=0, most=1)
    floor: int = parameter(64 * MIB, "page cache that is left to a guest", least=0, is_size=True)
    left_available: float = parameter(0.0625, "share of memory that stays available in a pulse", least=0, most=1)
    step_part: float = parameter(0.0625, "share of memory that one step takes", least=0.001, most=1)
    pace: float = parameter(10.0, "seconds between two steps of one guest", least=0)
    at_once: int = parameter(4, "guests in one decision", least=1, most=100000)
    least_gain: int = parameter(16 * MIB, "smallest gain worth a step", least=4096, is_size=True)
    refault_share: float = parameter(0.25, "part of a step that may come back", least=0, most=1)
    refault_window: float = parameter(30.0, "seconds in which it counts", least=0)
    back_off: float = parameter(60.0, "seconds that a guest is left alone at first", least=0)
    back_off_most: float = parameter(3600.0, "seconds that it is left alone at most", least=0)
    stale_after: float = parameter(10.0, "age in seconds from which statistics do not count", least=0)
    pulse_most: float = parameter(10.0, "seconds in which a balloon must have got there", least=0)


@dataclass(slots=True)
class _Guest:
    """What is remembered of one guest. Times are those of observations, sizes bytes."""

    floor: int
    back_off: float
    taken_at: float = float("-inf")
    taken: int = 0
    """What the last step was to take, 0 once it has been judged."""
    refaulted: int = 0
    quiet_until: float = float("-inf")
    peak: int = 0
    """The most bytes in use in the time from ``peak_since`` on, and ``earlier_peak`` in the half window before it."""
    earlier_peak: int = 0
    peak_since: float = float("-inf")
    spare: int = 0
    """What the last reclaim was to bring, 0 once the guest has done something."""
    cache_expected: int | None = None
    """More page cache than this after a pulse says that it brought nothing; None once the guest has done something."""


class Steady:
    """Takes from idle guests, and from all while the host is short; backs off where memory is needed again."""

    name = "steady"

    def __init__(self, parameters: SteadyParameters = SteadyParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._idle = IdleTime()
        self._guests: dict[str, _Guest] = {}
        self._short = False
        self._used: tuple[float, int] | None = None
        self._lack = 0.0
        """Bytes that the host misses, 0 while it is not short."""
        self._cache_after = parameters.cache_idle_after

    def decide(self, seen: Observation) -> Decision:
        """Return the ends of pulses that got there, and the next steps."""
        self._guests = {name: guest for name, guest in self._guests.items() if name in seen.vms}
        self._idle.keep(seen.vms.keys())
        self._look(seen)
        actions: list[Action] = []
        steps: list[tuple[int, Action, str]] = []
        notes = []
        for vm in seen.vms.values():
            fresh = _Guest(self.parameters.floor, self.parameters.back_off)
            guest = self._guests.setdefault(vm.name, fresh)
            idle, happened = self._idle.update(vm, seen.now)
            self._note_use(guest, vm, seen.now)
            if idle == 0:
                guest.spare, guest.cache_expected = 0, None
            if happened is not None and (note := self._judge(guest, vm, happened, seen.now)):
                notes.append(note)
            if vm.target_bytes > 0:
                if self._is_over(guest, vm, idle, seen.now):
                    actions.append(SetBalloon(vm.name, 0))
                continue
            if vm.balloon_bytes > 0:
                continue  # on its way out: what the next pulse has to grow by is not known yet
            if (step := self._step(guest, vm, idle, seen.now)) is not None:
                steps.append(step)
        steps.sort(key=lambda step: (-step[0], step[1].vm))
        for gain, action, why in steps[: self.parameters.at_once]:
            guest = self._guests[action.vm]
            guest.taken_at, guest.taken, guest.refaulted = seen.now, gain, 0
            actions.append(action)
            notes.append(why)
        return Decision(tuple(actions), f"{self._host(seen.host)}: {'; '.join(notes) or 'nothing to take'}")

    def _host(self, host: HostView) -> str:
        pressure = "unknown" if host.pressure is None else f"{host.pressure:.1f}%"
        free = host.free_bytes / max(host.budget_bytes, 1)
        return f"host {'short' if self._short else 'at ease'} (pressure {pressure}, free {free:.1%})"

    def _look(self, seen: Observation) -> None:
        # How the host stands: whether it is short, what it lacks, and how long page cache has to be idle.
        constants, host = self.parameters, seen.host
        before, used = self._used or (seen.now, host.used_bytes)
        self._used = (seen.now, host.used_bytes)
        seconds = seen.now - before
        growth = max(0.0, (host.used_bytes - used) / seconds) if seconds > 0 else 0.0
        expected = host.free_bytes - constants.ahead * growth
        enough = constants.high_free * host.budget_bytes
        waits = (host.pressure or 0.0) >= constants.pressure_on
        is_low = expected < constants.low_free * host.budget_bytes or (waits and expected < enough)
        self._short = is_low or (self._short and expected < enough)
        self._lack = enough - expected if self._short else 0.0
        longer = max(0.0, constants.cache_idle_after - constants.idle_after)
        self._cache_after = constants.idle_after + longer * host.free_bytes / max(host.budget_bytes, 1)

    def _judge(self, guest: _Guest, vm: VmView, happened: Activity, now: float) -> str | None:
        # Whether the last step took what the guest needed. Returns a note if it did.
        constants = self.parameters
        if guest.taken == 0:
            return None
        guest.refaulted += happened.refaulted_bytes + happened.major_faults * PAGE_SIZE
        if guest.refaulted > constants.refault_share * guest.taken:
            seconds = guest.back_off
            guest.quiet_until = now + seconds
            guest.back_off = min(2 * seconds, constants.back_off_most)
            guest.floor = min(guest.floor + guest.refaulted, vm.memory_bytes // 2)
            guest.taken = 0
            return f"{vm.name} needed {guest.refaulted >> 20}M again: left alone for {seconds:.0f} s"
        if now - guest.taken_at > constants.refault_window:
            guest.back_off = max(guest.back_off / 2, constants.back_off)
            guest.taken = 0
        return None

    def _is_over(self, guest: _Guest, vm: VmView, idle: float, now: float) -> bool:
        # A pulse ends when the balloon got there, took too long, or the guest does something.
        got_there = vm.balloon_bytes >= vm.target_bytes
        return got_there or now - guest.taken_at >= self.parameters.pulse_most or (idle == 0 and not self._short)

    def _note_use(self, guest: _Guest, vm: VmView, now: float) -> None:
        # The most that it used: in two halves of the window, of which the older one is forgotten as a whole.
        if now - guest.peak_since >= self.parameters.peak_window / 2:
            guest.earlier_peak, guest.peak, guest.peak_since = guest.peak, 0, now
        guest.peak = max(guest.peak, used_bytes(vm) or 0)

    def _spare(self, guest: _Guest, vm: VmView, free: int, idle: float) -> int:
        # The bytes of free memory that a reclaim would return and the guest does not need.
        constants = self.parameters
        unreturned = unreturned_bytes(vm)
        # A reclaim leaves a sixteenth of the memory free in the guest, which does not count as gain.
        most = free - vm.memory_bytes // 16
        if unreturned is None or idle < min(constants.free_after, constants.idle_after):
            return 0
        if unreturned >= free // 2:
            return min(unreturned, most)
        if idle < constants.idle_after:
            return 0
        peak = max(guest.peak, guest.earlier_peak)
        return min((vm.host_backed_bytes or 0) - peak, most)

    def _step(self, guest: _Guest, vm: VmView, idle: float, now: float) -> tuple[int, Action, str] | None:
        # The bytes that a step may gain, the step, and why; None if nothing is to be taken.
        constants = self.parameters
        free, available = free_bytes(vm), available_bytes(vm)
        if free is None or available is None or (vm.statistics_age or 0.0) > constants.stale_after:
            return None
        if now < guest.quiet_until or (now - guest.taken_at < constants.pace and not self._short):
            return None
        state = f"{vm.name} idle {idle:.0f} s"
        spare = self._spare(guest, vm, free, idle)
        # Where the last reclaim brought next to nothing, the next one would not either.
        is_fruitful = guest.spare == 0 or spare < FRUITFUL * guest.spare
        if spare >= constants.least_gain and is_fruitful:
            guest.spare = spare
            return spare, Reclaim(vm.name), f"{state}, reclaim about {spare >> 20}M"
        if idle < self._cache_after and not self._short:
            return None
        cache = reclaimable_cache(vm)
        step = min(int(max(constants.step_part * vm.memory_bytes, self._lack)), cache - guest.floor)
        target = bounded(vm, min(free + step, available - constants.left_available * vm.memory_bytes))
        gain = min(step, target - free)
        if gain < constants.least_gain or (guest.cache_expected is not None and cache > guest.cache_expected):
            return None
        guest.cache_expected = int(cache - (1 - FRUITFUL) * gain)
        return gain, SetBalloon(vm.name, target), f"{state}, cache {cache >> 20}M, take {gain >> 20}M"
