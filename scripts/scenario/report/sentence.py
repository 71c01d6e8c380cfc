"""What happened in a run, in a sentence or two for a person who sees it for the first time."""

from collections.abc import Mapping
from typing import Any, Final

from protocol.units import format_size
from scripts.scenario.run_record import VmState

_NAMED_MOST: Final = 3


def what_happened(summary: Mapping[str, Any]) -> str:
    """Return it, from the summary of a run."""
    scenario, vms = summary["scenario"], summary["vms"]
    place = "in virtual time" if summary.get("virtual") else "as real processes"
    count = len(vms)
    machines = "One machine" if count == 1 else f"{count} machines"
    begin = f"{machines} on a host of {format_size(scenario['budget_bytes'])}, {place}, policy {summary['policy']}: "
    peak = f"the host held at most {format_size(summary['score']['peak_bytes'])}"
    text = f"{begin}{_ends(vms)}; {peak}."
    if summary.get("interrupted"):
        text += f" The run was ended after {summary['seconds']:.1f} s of {scenario['duration']:g} s."
    return text


def _ends(vms: Mapping[str, Mapping[str, Any]]) -> str:
    by_state = {state: [name for name, vm in vms.items() if vm["state"] == state.value] for state in VmState}
    finished = by_state[VmState.FINISHED]
    parts = []
    if len(finished) == len(vms):
        parts.append("it finished its work" if len(vms) == 1 else "all finished their work")
    elif finished:
        parts.append(f"{_named(finished)} finished")
    words = {
        VmState.OOM_KILLED: "OOM-killed by the host",
        VmState.FAILED: "failed",
        VmState.RUNNING: "still running at the end",
        VmState.WAITING: "not started",
    }
    for state, word in words.items():
        names = by_state[state]
        if len(names) == len(vms) > 1:
            parts.append(f"all {'' if state is VmState.FAILED else 'were '}{word}")
        elif names:
            verb = "" if state is VmState.FAILED else "was " if len(names) == 1 else "were "
            parts.append(f"{_named(names)} {verb}{word}")
    return ", ".join(parts)


def _named(names: list[str]) -> str:
    if len(names) > _NAMED_MOST:
        return f"{len(names)} machines"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
