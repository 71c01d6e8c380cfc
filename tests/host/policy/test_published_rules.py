"""Each policy's published rule, in observations whose numbers come from the rule."""

import pytest

from host.policy.chromeos import Chromeos, ChromeosParameters
from host.policy.esx import Esx, EsxParameters
from host.policy.hyperv import Hyperv, HypervParameters
from host.policy.mom import Mom
from host.policy.parameters import PerVm
from host.policy.proxmox import Proxmox, ProxmoxParameters
from host.policy.reporting import Reporting
from host.policy.squeezed import Squeezed, SqueezedParameters
from protocol.units import GIB, MIB
from tests.host.policy.observations import balloons, left, machine, seen


def near(size: float) -> object:
    """Sizes that differ by no more than rounding to pages and to whole bytes."""
    return pytest.approx(size, abs=8192)


def test_reporting_asks_for_nothing() -> None:
    assert Reporting().decide(seen(machine("a"), used=16 * GIB, pressure=90.0)).actions == ()


# -- MOM --------------------------------------------------------------------------------------------------------------


def test_mom_shrinks_by_five_percent_while_a_fifth_of_the_host_is_not_free() -> None:
    guest = machine("a", 4 * GIB, free_bytes=3 * GIB)
    assert left(Mom().decide(seen(guest, budget=100 * GIB, used=81 * GIB)), guest) == {"a": near(0.95 * 4 * GIB)}
    assert balloons(Mom().decide(seen(guest, budget=100 * GIB, used=80 * GIB))) == {}


def test_mom_leaves_a_guest_a_free_share_that_falls_with_the_host() -> None:
    # 10 % of the host is free: half of the threshold, so half of the 20 % that a guest likes to have.
    guest = machine("a", 4 * GIB, free_bytes=int(0.13 * 4 * GIB))
    size = left(Mom().decide(seen(guest, budget=100 * GIB, used=90 * GIB)), guest)["a"]
    assert size == near(0.87 * 4 * GIB + 0.10 * 4 * GIB)


def test_mom_makes_guests_swap_when_the_host_has_next_to_nothing() -> None:
    # 2 % free is critical: the guest is left with -5 % + 2 % of free memory, within the step of 5 %.
    guest = machine("a", 4 * GIB, free_bytes=0)
    size = left(Mom().decide(seen(guest, budget=100 * GIB, used=98 * GIB)), guest)["a"]
    assert size == near(0.97 * 4 * GIB)


def test_mom_grows_back_by_five_percent_and_leaves_out_small_changes() -> None:
    guest = machine("a", 4 * GIB, balloon_bytes=GIB, free_bytes=2 * GIB)
    assert left(Mom().decide(seen(guest)), guest) == {"a": near(1.05 * 3 * GIB)}
    nearly = machine("a", 4 * GIB, balloon_bytes=8 * MIB, free_bytes=2 * GIB)
    assert balloons(Mom().decide(seen(nearly))) == {}


def test_mom_decides_by_averages() -> None:
    policy = Mom()
    guest = machine("a", 4 * GIB, free_bytes=2 * GIB)
    policy.decide(seen(guest, budget=100 * GIB, used=10 * GIB))
    # The average of 90 % and 0 % is free: no pressure yet.
    assert "grow" in policy.decide(seen(guest, budget=100 * GIB, used=100 * GIB)).reason


# -- Proxmox ----------------------------------------------------------------------------------------------------------


def test_proxmox_takes_at_most_100_mib_from_each_machine_towards_80_percent() -> None:
    first, second = machine("a", 4 * GIB, free_bytes=3 * GIB), machine("b", 4 * GIB, free_bytes=3 * GIB)
    decision = Proxmox().decide(seen(first, second, budget=10 * GIB, used=9 * GIB))
    assert balloons(decision) == {"a": 100 * MIB, "b": 100 * MIB}


def test_proxmox_ignores_a_goal_of_ten_mib() -> None:
    guest = machine("a", 4 * GIB, balloon_bytes=GIB)
    assert balloons(Proxmox().decide(seen(guest, budget=10 * GIB, used=8 * GIB - 10 * MIB))) == {}
    assert balloons(Proxmox().decide(seen(guest, budget=10 * GIB, used=8 * GIB - 11 * MIB))) != {}


def test_proxmox_shrinks_machines_with_enough_free_memory_first() -> None:
    # The minimum is 1 GiB; more than a quarter of it is free in one of the machines only.
    full, idle = machine("full", 4 * GIB, free_bytes=200 * MIB), machine("idle", 4 * GIB, free_bytes=300 * MIB)
    assert balloons(Proxmox().decide(seen(full, idle, budget=10 * GIB, used=9 * GIB))) == {"idle": 100 * MIB}


def test_proxmox_grows_machines_with_little_free_memory_first() -> None:
    full = machine("full", 4 * GIB, balloon_bytes=GIB, free_bytes=200 * MIB)
    idle = machine("idle", 4 * GIB, balloon_bytes=GIB, free_bytes=300 * MIB)
    assert balloons(Proxmox().decide(seen(full, idle, budget=10 * GIB, used=7 * GIB))) == {"full": GIB - 100 * MIB}


def test_proxmox_shares_out_what_is_above_the_minima() -> None:
    # 2 GiB are above the minima; 1.5 GiB are to remain, in proportion 2 : 1.
    parameters = ProxmoxParameters(maxchange=4 * GIB, shares=PerVm(1000, {"a": 2000}))
    first, second = machine("a", 4 * GIB, balloon_bytes=2 * GIB), machine("b", 4 * GIB, balloon_bytes=2 * GIB)
    decision = Proxmox(parameters).decide(seen(first, second, budget=10 * GIB, used=8 * GIB + 512 * MIB))
    assert left(decision, first, second) == {"b": near(GIB + 512 * MIB)}  # the other one has its part


def test_proxmox_leaves_a_machine_without_shares_alone() -> None:
    parameters = ProxmoxParameters(shares=PerVm(1000, {"a": 0}))
    first, second = machine("a", free_bytes=2 * GIB), machine("b", free_bytes=2 * GIB)
    assert balloons(Proxmox(parameters).decide(seen(first, second, budget=GIB, used=GIB))) == {"b": 100 * MIB}


# -- squeezed ---------------------------------------------------------------------------------------------------------


def test_squeezed_gives_all_domains_one_proportion_of_their_range() -> None:
    # Minima 1 and 2 GiB, ranges 3 and 6 GiB; 7.5 GiB of room: gamma is one half.
    small, large = machine("small", 4 * GIB), machine("large", 8 * GIB)
    parameters = SqueezedParameters(target_host_free_mem=0)
    decision = Squeezed(parameters).decide(seen(small, large, budget=7 * GIB + 512 * MIB))
    assert left(decision, small, large) == {"small": near(2.5 * GIB), "large": near(5 * GIB)}
    assert "gamma 0.500" in decision.reason


def test_squeezed_keeps_nine_mib_free_and_uses_all_else() -> None:
    domain = machine("a", 4 * GIB)
    assert left(Squeezed().decide(seen(domain, budget=3 * GIB)), domain) == {"a": near(3 * GIB - 9 * MIB)}


def test_squeezed_counts_a_domain_that_does_not_move_with_what_it_has() -> None:
    policy = Squeezed(SqueezedParameters(target_host_free_mem=0))
    stuck, other = machine("stuck", 4 * GIB, target_bytes=2 * GIB), machine("other", 4 * GIB)
    policy.decide(seen(stuck, other, budget=6 * GIB))
    decision = policy.decide(seen(stuck, other, budget=6 * GIB, now=30.0))
    assert "inactive: stuck" in decision.reason
    assert left(decision, stuck, other)["other"] == near(2 * GIB)
    moved = machine("stuck", 4 * GIB, balloon_bytes=GIB, target_bytes=2 * GIB)
    assert "inactive" not in policy.decide(seen(moved, other, budget=6 * GIB, now=60.0)).reason


# -- ChromeOS ---------------------------------------------------------------------------------------------------------


def test_chromeos_moves_half_of_the_difference() -> None:
    # The host has 1000M available, 500M above its margin; the guest 1400M, 1000M above its critical 400M.
    parameters = ChromeosParameters(critical_margin=0.05)
    guest = machine("a", 4000 * MIB, free_bytes=900 * MIB, cache_bytes=500 * MIB)
    decision = Chromeos(parameters).decide(seen(guest, budget=10000 * MIB, used=9000 * MIB))
    assert balloons(decision) == {"a": near(250 * MIB)}


def test_chromeos_gives_back_at_most_what_the_host_has_and_ten_mib() -> None:
    parameters = ChromeosParameters(critical_margin=0.05)
    guest = machine("a", 4000 * MIB, balloon_bytes=2000 * MIB, free_bytes=300 * MIB)
    decision = Chromeos(parameters).decide(seen(guest, budget=10000 * MIB, used=9450 * MIB))
    assert balloons(decision) == {"a": near(2000 * MIB - 60 * MIB)}


def test_chromeos_leaves_small_differences_alone() -> None:
    parameters = ChromeosParameters(critical_margin=0.05)
    guest = machine("a", 4000 * MIB, free_bytes=905 * MIB)
    assert balloons(Chromeos(parameters).decide(seen(guest, budget=10000 * MIB, used=9000 * MIB))) == {}


def test_chromeos_learns_at_which_level_a_guest_can_live() -> None:
    policy = Chromeos(ChromeosParameters(critical_margin=0.05))
    for now in (0.0, 1.0, 2.0):
        policy.decide(
            seen(machine("a", 4000 * MIB, free_bytes=200 * MIB), now=now, budget=10000 * MIB, used=9400 * MIB)
        )
    guest = machine("a", 4000 * MIB, free_bytes=1200 * MIB)
    # The guest is 1000M above its critical level, which is 200M by now; the host 500M above its own.
    decision = policy.decide(seen(guest, now=3.0, budget=10000 * MIB, used=9000 * MIB))
    assert balloons(decision) == {"a": near(250 * MIB)}


# -- Hyper-V ----------------------------------------------------------------------------------------------------------


def test_hyperv_gives_the_demand_and_a_fifth_on_top() -> None:
    guest = machine("a", 4000 * MIB, available_bytes=2000 * MIB)
    decision = Hyperv().decide(seen(guest))
    assert left(decision, guest) == {"a": near(2400 * MIB)}
    assert "a 50%" in decision.reason


def test_hyperv_never_goes_below_the_minimum() -> None:
    guest = machine("a", 4000 * MIB, available_bytes=3990 * MIB)
    assert left(Hyperv().decide(seen(guest)), guest) == {"a": near(1000 * MIB)}


def test_hyperv_shares_a_shortage_by_weight() -> None:
    # Both ask for 2400M and have 1000M at least; 1200M above the minima go 2 : 1.
    parameters = HypervParameters(memory_weight=PerVm(5000, {"a": 10000}))
    first, second = (machine(name, 4000 * MIB, available_bytes=2000 * MIB) for name in "ab")
    decision = Hyperv(parameters).decide(seen(first, second, budget=3200 * MIB))
    assert left(decision, first, second) == {"a": near(1800 * MIB), "b": near(1400 * MIB)}


# -- ESX --------------------------------------------------------------------------------------------------------------


def test_esx_keeps_free_memory_by_the_sliding_scale() -> None:
    # The published example: 100 GB are 899 MB for the first 28 GB, and 1 % of the rest.
    assert Esx().min_free(28 * GIB) == pytest.approx(899 * MIB, abs=3 * MIB)
    assert Esx().min_free(100 * GIB) == pytest.approx(899 * MIB + 0.72 * GIB, abs=3 * MIB)


def test_esx_takes_nothing_above_the_soft_state() -> None:
    guest = machine("a", 8 * GIB, available_bytes=7 * GIB)
    min_free = Esx().min_free(16 * GIB)
    decision = Esx().decide(seen(guest, used=16 * GIB - int(0.7 * min_free)))
    assert (balloons(decision), "state clear" in decision.reason) == ({}, True)
    assert balloons(Esx().decide(seen(guest, used=16 * GIB - int(0.6 * min_free)))) != {}


def test_esx_takes_idle_memory_first() -> None:
    busy, idle = machine("busy", 8 * GIB, available_bytes=0), machine("idle", 8 * GIB, available_bytes=8 * GIB)
    decision = Esx().decide(seen(busy, idle, used=16 * GIB))
    # An idle page costs four times as much: idle gives until it has a quarter of busy's pages; here it gives all.
    assert balloons(decision) == {"idle": pytest.approx(Esx().min_free(16 * GIB), rel=0.02)}


def test_esx_without_the_tax_goes_by_shares_alone() -> None:
    policy = Esx(EsxParameters(idle_tax=0, shares=PerVm(1000, {"rich": 2000})))
    rich, poor = machine("rich", 8 * GIB, available_bytes=8 * GIB), machine("poor", 8 * GIB, available_bytes=0)
    assert set(balloons(policy.decide(seen(rich, poor, used=16 * GIB)))) == {"poor"}


def test_esx_takes_at_most_65_percent() -> None:
    guest = machine("a", GIB, available_bytes=GIB)
    decision = Esx(EsxParameters(min_free_pct=50)).decide(seen(guest, used=16 * GIB))
    assert balloons(decision)["a"] <= 0.65 * GIB


def test_esx_notices_activity_at_once_and_forgets_it_slowly() -> None:
    policy = Esx()
    policy.decide(seen(machine("a", available_bytes=0)))
    later = policy.decide(seen(machine("a", available_bytes=4 * GIB), now=60.0))
    assert "active: a 50%" in later.reason
    assert "active: a 100%" in policy.decide(seen(machine("a", available_bytes=0), now=75.0)).reason


def test_esx_returns_memory_in_the_high_state() -> None:
    guest = machine("a", 8 * GIB, balloon_bytes=GIB, available_bytes=GIB)
    assert balloons(Esx().decide(seen(guest, used=4 * GIB))) == {"a": 0}
