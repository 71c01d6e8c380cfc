"""Examples of the demonstration's states and results, for its tests."""

from dataclasses import replace
from typing import Any

from host.netlink import ProcessCost
from protocol.units import GIB, MIB
from scripts.demonstration.state import HostState, Picture, VmState
from scripts.demonstration.summary import RoundResult


def vm(**fields: Any) -> VmState:
    """Return VM A of 1 GiB, just created but for ``fields``."""
    return VmState(**{"name": "A", "kind": "emulated guest", "memory_bytes": GIB, **fields})


def picture(*vms: VmState) -> Picture:
    """Return a picture in the middle of the first round."""
    host = HostState(budget_bytes=1216 * MIB, budget_source="memory cgroup v1")
    host.apply(608 * MIB)
    return Picture(title="Two VMs", round_title="1 of 2", host=host, vms=vms, seconds=4.25)


COST = ProcessCost(source="taskstats v16", pid=7, peak_resident_bytes=796 * MIB, minor_faults=201_810, major_faults=3)

WITH = RoundResult(
    reporting=True,
    real=False,
    memory_bytes=GIB,
    budget_bytes=1216 * MIB,
    budget_source="memory cgroup v1",
    host_peak_bytes=809 * MIB,
    wanted_bytes=768 * MIB,
    a_peak_bytes=768 * MIB,
    a_after_bytes=0,
    a_returned_seconds=0.25,
    a_reports=29,
    a_discarded_bytes=1762 * MIB,
    b_peak_bytes=768 * MIB,
    b_verified_pages=196_608,
    b_corrupted_pages=0,
    stopped_by=None,
    a_cost=COST,
    b_cost=replace(COST, direct_reclaim_count=4, direct_reclaim_seconds=0.0125),
)

WITHOUT = replace(
    WITH,
    reporting=False,
    a_after_bytes=768 * MIB,
    a_returned_seconds=None,
    a_reports=0,
    b_peak_bytes=390 * MIB,
    b_verified_pages=None,
    b_corrupted_pages=None,
    stopped_by="the kernel's OOM killer",
    b_cost=None,
)
