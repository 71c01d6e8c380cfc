"""The policies that take from idle guests or reclaim: WSL's, `reclaim-on-pressure`, and our own."""

from typing import Any

import pytest

from host.policy.activity import IdleTime, activity
from host.policy.observation import VmView
from host.policy.policy import Policy
from host.policy.reclaim_on_pressure import ReclaimOnPressure
from host.policy.steady import Steady, SteadyParameters
from host.policy.wsl import Wsl, WslParameters
from protocol.units import GIB, MIB
from tests.host.policy.observations import balloons, machine, reclaims, seen


def guest(name: str = "a", **fields: Any) -> VmView:
    """A guest of 8 GiB with 1 GiB free and 3 GiB of page cache, all of it backed but what is free."""
    usual = {
        "free_bytes": GIB,
        "cache_bytes": 3 * GIB,
        "available_bytes": 4 * GIB,
        "host_backed_bytes": 7 * GIB,
        "statistics_age": 0.1,
        "minor_faults": 0,
        "major_faults": 0,
    }
    return machine(name, 8 * GIB, **{**usual, **fields})


def idle_for(policy: Policy, seconds: float, vm: VmView, **host: Any) -> Any:
    """Let the policy see ``vm`` unchanged at each interval until ``seconds``, and return its last decision."""
    now = 0.0
    decision = policy.decide(seen(vm, now=now, **host))
    while now + policy.interval <= seconds:
        now += policy.interval
        decision = policy.decide(seen(vm, now=now, **host))
    return decision


def eager() -> Steady:
    """Our policy as it is on a full host: page cache is taken from a guest that was idle for 20 s."""
    return Steady(SteadyParameters(cache_idle_after=20.0))


# -- idleness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "is_idle"),
    [
        ({}, True),
        ({"minor_faults": 200 * 5}, True),
        ({"minor_faults": 201 * 5}, False),
        ({"major_faults": 1}, False),
        ({"swapped_out_bytes": 4096}, False),
        ({"free_bytes": GIB - 30 * MIB}, True),
        ({"free_bytes": GIB - 50 * MIB}, False),
        ({"free_bytes": GIB - 500 * MIB, "cache_bytes": 3 * GIB + 500 * MIB}, True),
        ({"free_bytes": GIB - 500 * MIB, "balloon_bytes": 500 * MIB}, True),
        ({"free_bytes": GIB - 500 * MIB, "target_bytes": 500 * MIB}, True),
        ({"free_bytes": GIB - 500 * MIB, "target_bytes": 500 * MIB, "major_faults": 1}, False),
    ],
)
def test_idleness_is_seen_in_statistics(change: dict[str, Any], is_idle: bool) -> None:
    found = activity(guest(), guest(**change), 5.0)
    assert found is not None
    assert found.is_idle is is_idle


def test_counters_that_go_back_are_another_guest() -> None:
    assert activity(guest(minor_faults=9), guest(minor_faults=8), 1.0) is None
    assert activity(guest(free_bytes=None), guest(), 1.0) is None


def test_idle_time_begins_anew_with_activity() -> None:
    idle = IdleTime()
    assert idle.update(guest(), 0.0)[0] == 0.0
    assert idle.update(guest(), 10.0)[0] == 10.0
    assert idle.update(guest(major_faults=3), 20.0)[0] == 0.0
    assert idle.update(guest(major_faults=3), 25.0)[0] == 5.0


# -- WSL --------------------------------------------------------------------------------------------------------------


def test_wsl_takes_a_32nd_after_two_minutes_of_idleness() -> None:
    assert balloons(idle_for(Wsl(), 110.0, guest())) == {}
    # What is free, and a step: a 32nd of 8 GiB is 256 MiB.
    assert balloons(idle_for(Wsl(), 120.0, guest())) == {"a": GIB + 256 * MIB}


def test_wsl_ends_its_pulse_at_the_next_decision() -> None:
    assert balloons(Wsl().decide(seen(guest(balloon_bytes=GIB)))) == {"a": 0}


def test_wsl_leaves_a_floor_of_cache() -> None:
    assert balloons(idle_for(Wsl(), 200.0, guest(cache_bytes=128 * MIB))) == {}
    assert balloons(idle_for(Wsl(), 200.0, guest(cache_bytes=138 * MIB))) == {"a": GIB + 10 * MIB}


def test_wsl_drops_the_cache_once_in_a_period_of_idleness() -> None:
    policy = Wsl(WslParameters(auto_memory_reclaim="dropcache"))
    assert balloons(idle_for(policy, 120.0, guest())) == {"a": 4 * GIB - 128 * MIB}
    assert balloons(policy.decide(seen(guest(), now=130.0))) == {}
    policy.decide(seen(guest(major_faults=1), now=140.0))
    assert balloons(policy.decide(seen(guest(major_faults=1), now=260.0))) == {"a": 4 * GIB - 128 * MIB}


def test_wsl_can_be_disabled() -> None:
    assert balloons(idle_for(Wsl(WslParameters(auto_memory_reclaim="disabled")), 200.0, guest())) == {}


def test_files_in_tmpfs_are_no_cache_that_could_be_taken() -> None:
    # 3 GiB of files are counted as cache; of these the kernel could give up 200 MiB.
    tmpfs = guest(available_bytes=GIB + 200 * MIB)
    assert balloons(idle_for(Wsl(), 120.0, tmpfs)) == {"a": GIB + 72 * MIB}
    assert balloons(idle_for(eager(), 20.0, guest(available_bytes=GIB + 70 * MIB))) == {}


# -- reclaim-on-pressure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "is_short"), [({"pressure": 10.0}, True), ({"pressure": 9.9}, False), ({}, False)])
def test_reclaim_waits_for_pressure(host: dict[str, Any], is_short: bool) -> None:
    decision = ReclaimOnPressure().decide(seen(guest(host_backed_bytes=8 * GIB), **host))
    assert reclaims(decision) == (["a"] if is_short else [])


def test_reclaim_comes_when_little_is_free_the_largest_first_and_not_twice_in_a_row() -> None:
    policy = ReclaimOnPressure()
    small, large = guest("small", host_backed_bytes=7 * GIB + 40 * MIB), guest("large", host_backed_bytes=8 * GIB)
    tiny = guest("tiny", host_backed_bytes=7 * GIB + 31 * MIB)
    host = {"budget": 10 * GIB, "used": 9 * GIB + 10 * MIB}
    assert reclaims(policy.decide(seen(small, large, tiny, **host))) == ["large", "small"]
    assert reclaims(policy.decide(seen(small, large, tiny, now=29.0, **host))) == []
    assert reclaims(policy.decide(seen(small, large, tiny, now=30.0, **host))) == ["large", "small"]


AFTER: dict[str, Any] = {
    "free_bytes": GIB + 512 * MIB,
    "cache_bytes": 3 * GIB - 512 * MIB,
    "host_backed_bytes": 7 * GIB - 512 * MIB,
}
"""The same guest after a pulse of 512 MiB."""


# -- steady -----------------------------------------------------------------------------------------------------------


def test_steady_returns_free_memory_of_an_idle_guest_first() -> None:
    full = guest(host_backed_bytes=7 * GIB + 300 * MIB)
    assert reclaims(idle_for(Steady(), 18.0, full)) == []
    assert reclaims(idle_for(Steady(), 20.0, full)) == ["a"]


def test_steady_then_takes_cache_by_a_pulse() -> None:
    # A sixteenth of 8 GiB, on top of what is free.
    policy = eager()
    assert balloons(idle_for(policy, 20.0, guest())) == {"a": GIB + 512 * MIB}
    under_way = guest(balloon_bytes=GIB, target_bytes=GIB + 512 * MIB, free_bytes=0)
    assert policy.decide(seen(under_way, now=22.0)).actions == ()
    there = guest(balloon_bytes=GIB + 512 * MIB, free_bytes=0, cache_bytes=2 * GIB + 512 * MIB)
    assert balloons(policy.decide(seen(there, now=24.0))) == {"a": 0}


def test_steady_ends_a_pulse_when_the_guest_wakes_up_and_when_it_takes_too_long() -> None:
    policy = eager()
    idle_for(policy, 20.0, guest())
    woken = guest(balloon_bytes=GIB, target_bytes=GIB + 512 * MIB, free_bytes=0, major_faults=1)
    assert balloons(policy.decide(seen(woken, now=22.0))) == {"a": 0}
    policy = eager()
    idle_for(policy, 20.0, guest())
    slow = guest(balloon_bytes=GIB, target_bytes=GIB + 512 * MIB, free_bytes=0)
    assert balloons(policy.decide(seen(slow, now=30.0))) == {"a": 0}


def test_steady_keeps_its_pace_and_its_floor() -> None:
    policy = eager()
    assert balloons(idle_for(policy, 20.0, guest())) != {}
    after = guest(**AFTER)
    assert balloons(policy.decide(seen(after, now=28.0))) == {}
    assert balloons(policy.decide(seen(after, now=30.0))) == {"a": 2 * GIB}
    assert balloons(idle_for(eager(), 60.0, guest(cache_bytes=79 * MIB))) == {}


def test_steady_leaves_a_part_of_memory_available() -> None:
    short = guest(free_bytes=300 * MIB, cache_bytes=GIB, available_bytes=600 * MIB)
    assert balloons(idle_for(eager(), 20.0, short)) == {}
    more = guest(free_bytes=300 * MIB, cache_bytes=GIB, available_bytes=900 * MIB)
    assert balloons(idle_for(eager(), 20.0, more)) == {"a": 388 * MIB}  # 512 MiB stay


def test_steady_backs_off_twice_as_long_each_time_memory_is_needed_again() -> None:
    policy = eager()
    idle_for(policy, 20.0, guest())
    back = 200 * MIB  # more than a quarter of the step
    assert "left alone for 60 s" in policy.decide(seen(guest(refaulted_bytes=back), now=22.0)).reason
    quiet = guest(**AFTER, refaulted_bytes=back)
    assert [balloons(policy.decide(seen(quiet, now=now))) for now in (60.0, 81.0)] == [{}, {}]
    assert balloons(policy.decide(seen(quiet, now=82.0))) == {"a": 2 * GIB}
    again = guest(**AFTER, refaulted_bytes=2 * back)
    assert "left alone for 120 s" in policy.decide(seen(again, now=84.0)).reason
    # The floor has risen by what came back: 464 MiB of cache stay.
    little = guest(refaulted_bytes=2 * back, cache_bytes=480 * MIB)
    policy.decide(seen(little, now=250.0))
    assert balloons(policy.decide(seen(little, now=300.0))) == {"a": GIB + 16 * MIB}


def test_steady_leaves_page_cache_the_longer_the_emptier_the_host() -> None:
    assert balloons(idle_for(Steady(), 598.0, guest())) == {}
    assert balloons(idle_for(Steady(), 600.0, guest())) == {"a": GIB + 512 * MIB}
    half = {"budget": 16 * GIB, "used": 8 * GIB}
    assert balloons(idle_for(Steady(), 308.0, guest(), **half)) == {}
    assert balloons(idle_for(Steady(), 310.0, guest(), **half)) == {"a": GIB + 512 * MIB}


@pytest.mark.parametrize(
    ("host", "is_short"),
    [
        ({"used": 14 * GIB, "pressure": 5.0}, True),
        ({"used": 14 * GIB, "pressure": 4.9}, False),
        ({"used": 13 * GIB, "pressure": 100.0}, False),  # 19 % are free: what programs wait for is not others' memory
        ({"used": 15 * GIB}, True),
        ({"used": 0, "pressure": 100.0}, False),
    ],
)
def test_steady_calls_a_host_short_that_has_little_free(host: dict[str, Any], is_short: bool) -> None:
    decision = Steady().decide(seen(guest(), **host))
    assert decision.reason.startswith("host short" if is_short else "host at ease")
    assert bool(decision.actions) is is_short


def test_steady_sees_a_shortage_before_it_is_there_and_takes_what_is_missing() -> None:
    policy = Steady()
    assert policy.decide(seen(guest(), used=8 * GIB)).actions == ()
    # 1 GiB a second: in 5 s 1 GiB is free, less than 8 % of 16 GiB; to 16 % 1.56 GiB are missing.
    taken = balloons(policy.decide(seen(guest(), now=2.0, used=10 * GIB)))["a"] - GIB
    assert taken == pytest.approx(1.56 * GIB, abs=4096)
    # At the same use it fills no more, and 37 % are free.
    assert policy.decide(seen(guest(**AFTER), now=4.0, used=10 * GIB)).actions == ()


def test_steady_takes_page_cache_from_busy_guests_until_the_host_is_at_ease() -> None:
    policy = Steady()
    assert balloons(policy.decide(seen(guest(), used=15 * GIB))) != {}
    busy = guest(**AFTER, major_faults=5)
    assert balloons(policy.decide(seen(busy, now=2.0, used=14 * GIB))) != {}  # 12.5 %, below high_free
    busier = guest(**AFTER, major_faults=6)
    assert policy.decide(seen(busier, now=14.0, used=13 * GIB)).actions == ()


def test_steady_leaves_free_memory_that_the_guest_has_used_a_while_ago() -> None:
    """It would be needed again, and waited for."""
    policy = Steady()
    policy.decide(seen(guest(free_bytes=GIB - 300 * MIB, host_backed_bytes=7 * GIB + 300 * MIB)))
    freed = guest(host_backed_bytes=7 * GIB + 300 * MIB)
    times = [2.0 * step for step in range(1, 61)]
    assert [now for now in times if reclaims(policy.decide(seen(freed, now=now)))] == [120.0]


def test_steady_returns_free_memory_early_where_nothing_reports_it() -> None:
    assert reclaims(idle_for(Steady(), 2.0, guest(host_backed_bytes=7 * GIB + 512 * MIB))) == []
    assert reclaims(idle_for(Steady(), 4.0, guest(host_backed_bytes=7 * GIB + 512 * MIB))) == ["a"]


def test_steady_does_not_trust_old_statistics() -> None:
    assert idle_for(eager(), 40.0, guest(statistics_age=11.0)).actions == ()
    assert idle_for(eager(), 40.0, guest(free_bytes=None, available_bytes=None)).actions == ()


def test_steady_does_not_repeat_a_reclaim_that_brought_nothing() -> None:
    policy = eager()
    full = guest(host_backed_bytes=7 * GIB + 300 * MIB, cache_bytes=0)
    assert reclaims(idle_for(policy, 20.0, full)) == ["a"]
    assert [policy.decide(seen(full, now=now)).actions for now in (30.0, 40.0, 400.0)] == [(), (), ()]


def test_steady_does_not_repeat_a_pulse_that_brought_nothing_until_the_guest_did_something() -> None:
    policy = eager()
    assert balloons(idle_for(policy, 20.0, guest())) != {}
    assert [policy.decide(seen(guest(), now=now)).actions for now in (30.0, 40.0, 400.0)] == [(), (), ()]
    policy.decide(seen(guest(major_faults=1), now=402.0))
    assert balloons(policy.decide(seen(guest(major_faults=1), now=430.0))) != {}


def test_steady_waits_until_the_last_pulse_is_out_of_the_balloon() -> None:
    """What the next one has to grow by is not known before, and one that is too small would bring nothing."""
    policy = eager()
    assert balloons(idle_for(policy, 20.0, guest())) != {}
    there = guest(balloon_bytes=GIB + 512 * MIB, free_bytes=0, cache_bytes=2 * GIB + 512 * MIB)
    assert balloons(policy.decide(seen(there, now=24.0))) == {"a": 0}
    deflating = guest(target_bytes=0, balloon_bytes=GIB, **{**AFTER, "free_bytes": 512 * MIB})
    assert policy.decide(seen(deflating, now=60.0)).actions == ()
    assert balloons(policy.decide(seen(guest(**AFTER), now=62.0))) != {}
