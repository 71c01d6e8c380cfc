"""``doctor``: each machine's diagnosis, from fresh facts."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from host.balloonctl.daemons import Entry, Machine
from host.balloonctl.table import cut, short_size, short_time, wrapped
from host.doctor.diagnosis import diagnose, is_healthy
from host.doctor.facts import read_facts
from host.doctor.finding import Finding
from host.qmp.qmp_client import QmpClient
from host.terminal_view.styled_line import printable
from protocol.errors import BalloonError

NAME_MOST: Final = 40
"""Most characters of a guest's name: that of a cgroup may have 255."""

AT_ONCE: Final = 8
"""Guests that are asked for statistics at the same time, each by a connection of its own."""


def fresh_entries(machines: Sequence[Machine]) -> list[Entry]:
    """Return the entry of each machine after its guest was asked for statistics. A guest that owes them is seen."""
    asked = [machine for machine in machines if "statistics" in machine.entry["features"]]
    if asked:
        with ThreadPoolExecutor(min(AT_ONCE, len(asked))) as pool:
            list(pool.map(_ask_guest, asked))
    fresh: dict[tuple[str, int], Entry] = {}
    for daemon in {machine.daemon.path: machine.daemon for machine in machines}.values():
        for entry in daemon.entries():
            fresh[daemon.name, entry["vm"]] = entry
    return [fresh.get((machine.daemon.name, machine.number), machine.entry) for machine in machines]


def _ask_guest(machine: Machine) -> None:
    try:
        with QmpClient(machine.daemon.path) as client:
            client.command("query-guest-statistics", vm=machine.number)
    except BalloonError:
        return  # it does not answer, which the facts say then


def diagnosis_lines(label: str, entry: Entry, width: int | None) -> list[str]:
    """Return the verdict on one machine: a line, and two paragraphs for each finding."""
    findings = diagnose(read_facts(entry))
    name = cut(printable(entry["name"]), NAME_MOST) or "unnamed"
    lines = wrapped(f"vm {label} ({name}, process {entry['pid']}): {_verdict(entry, findings)}", width, 4)
    for finding in findings:
        mark = "!" if finding.is_fault else "-"
        lines += wrapped(f"  {mark} {finding.sentence}", width, 4)
        lines += wrapped(f"    {finding.remedy_for(label)}", width, 4)
    return lines


def _verdict(entry: Entry, findings: list[Finding]) -> str:
    if not is_healthy(findings):
        return "not healthy"
    if not entry["reports"]:
        return "healthy so far, no report yet"
    reports = "1 report" if entry["reports"] == 1 else f"{entry['reports']} reports"
    given = f"{reports}, {short_size(entry['discarded-bytes'])} discarded"
    return f"healthy ({given}, the last {short_time(entry['last-report'])} ago)"


def diagnosis_object(label: str, entry: Entry) -> dict[str, Any]:
    """Return the verdict on one machine for ``--json``."""
    findings = diagnose(read_facts(entry))
    return {
        "label": label,
        "vm": entry["vm"],
        "healthy": is_healthy(findings),
        "findings": [
            {
                "cause": finding.cause.value,
                "fault": finding.is_fault,
                "sentence": finding.sentence,
                "remedy": finding.remedy_for(label),
            }
            for finding in findings
        ],
    }
