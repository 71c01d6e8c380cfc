"""Plays a scenario with real processes on this machine: what it needs is looked at before anything starts."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from host.policy.live.policy_process import policy_for_run
from protocol.errors import BalloonError
from protocol.units import format_size
from scripts.child_processes import module_environment, python_module
from scripts.scenario.real.budget import AccountedBudget, make_budget, memory_for_us
from scripts.scenario.real.leftovers import run_directory
from scripts.scenario.real.live_policy import LivePolicy
from scripts.scenario.real.networks import Networks
from scripts.scenario.real.pressure import Pressure
from scripts.scenario.real.real_machine import why_costs_are_unknown
from scripts.scenario.real.real_run import RealRun, needs_linux
from scripts.scenario.run_record import RunRecord, Sample
from scripts.scenario.scale import fitting
from scripts.scenario.scenario import Scenario, VmKind
from scripts.scenario.watched import Watch, unwatched


def play(
    scenario: Scenario,
    *,
    policy: str,
    seed: int,
    budget: str = "auto",
    maps: bool = False,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> RunRecord:
    """Play ``scenario`` under ``policy``, scaled down to this machine's memory if it is larger.

    ``maps`` says whether maps of the machines' memory are kept.
    ``budget`` is ``cgroup``, ``accounting``, or ``auto``: a cgroup where the user may make one.

    Raises:
        BalloonError: a coarse machine, no real kernel, or a process that cannot be started.
        UsageError: the policy is unknown, or a machine becomes too small.
    """
    return play_prepared(prepared(scenario), policy=policy, seed=seed, budget=budget, maps=maps, on_sample=on_sample)


def prepared(scenario: Scenario) -> Scenario:
    """Return ``scenario`` as this machine can play it, with what it needs fetched; what differs is told.

    Raises:
        BalloonError: a coarse machine, or no real kernel.
        UsageError: a machine becomes too small.
    """
    for spec in scenario.vms:
        if spec.kind is VmKind.COARSE:
            raise BalloonError(f"{scenario.name}: {spec.name} is a coarse machine, which only --virtual has")
        if spec.kind is VmKind.LINUX and spec.reporter is None and any(vm.reporter for vm in scenario.vms):
            _say(f"{spec.name} reports nevertheless: a real kernel does where the daemon takes reports for others")
    fits = fitting(scenario, memory_for_us() * 9 // 10)
    if fits is not scenario:
        _say(f"scaled to {format_size(fits.budget_bytes)}: {format_size(scenario.budget_bytes)} are more than there is")
    if scenario.swap_bytes:
        _say("the host of a real run has no swap: what exceeds the budget is killed")
    if needs_linux(fits):
        fetch = subprocess.run(
            python_module("guest.linux", "--fetch-only"),
            stdout=subprocess.DEVNULL,
            env=module_environment(),
            check=False,
        )
        if fetch.returncode:
            raise BalloonError(f"{scenario.name}: no Linux kernel is available here")
    return fits


def _say(line: str) -> None:
    print(f"balloon-lab run: {line}", file=sys.stderr, flush=True)


def play_prepared(
    scenario: Scenario,
    *,
    policy: str,
    seed: int,
    budget: str = "auto",
    maps: bool = False,
    on_sample: Callable[[Sample], None] = lambda sample: None,
    watch: Watch = unwatched,
    say: Callable[[str], None] = _say,
) -> RunRecord:
    """Play what :func:`prepared` has returned. ``maps`` is as in :func:`play`, and ``say`` takes lines for people.

    Raises:
        BalloonError: a process that ended which should not have.
        UsageError: the policy is unknown.
    """
    parameters = scenario.policy.parameters if policy == scenario.policy.name else {}
    at_work = LivePolicy(policy_for_run(policy, parameters), say)
    with (
        run_directory() as directory,
        make_budget(budget, scenario.budget_bytes) as limit,
        Networks(scenario.vms, say) as networks,
    ):
        if budget == "auto" and isinstance(limit, AccountedBudget):
            say("no memory cgroup can be made here: the run adds up what machines have, and stops one itself")
        if Pressure(limit.pressure_file).some_avg10() is None:
            say(f"{limit.pressure_file}: this kernel does not tell its pressure on memory (PSI)")
        if (why := why_costs_are_unknown()) is not None:
            say(f"stall time and the processor time of reclaim leave out what the kernel does for a process: {why}")
        run = RealRun(
            replace(scenario, policy=replace(scenario.policy, name=policy)),
            limit,
            Path(directory),
            seed=seed,
            policy=at_work,
            prefixes=networks.prefixes,
            maps=maps,
            on_sample=lambda record: on_sample(record.samples[-1]),
            watch=watch,
        )
        return run.play()
