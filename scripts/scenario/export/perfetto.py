"""A run as a trace in the Trace Event Format (Chrome JSON), which ui.perfetto.dev and trace_processor load.

One process for the host and one for each machine:

* counters (``C``): the host's memory and pressure; of each machine its memory, and its ledger by cause, in bytes. A
  counter is written where it changes;
* slices (``X``): the phases of a machine's workloads, each until the next one, the machine's end, or the run's;
* instants (``i``): all other events, and the policy's decisions with their reasons.

``ts`` and ``dur`` are microseconds since the run began.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from scripts.scenario.export.run_tables import RunResults, RunTable
from scripts.scenario.run_record import LEDGER_CAUSES

HOST_PID: Final = 1
PHASES_TID: Final = 1
EVENTS_TID: Final = 2
POLICY_TID: Final = 3

PHASE: Final = "phase"
ENDS: Final = ("finished", "oom_killed", "failed")
"""Events that end a machine's last phase."""

TraceEvent = dict[str, Any]

_MEMORY: Final = ("free_bytes", "reported_bytes", "allocated_bytes", "resident_bytes", "balloon_bytes", "cache_bytes")


def trace(results: RunResults) -> dict[str, Any]:
    """Return the whole trace as JSON values."""
    pids = {name: HOST_PID + number for number, name in enumerate(results.summary["scenario"]["vms"], 1)}
    events = [*_names(pids), *_counters(results, pids), *_phases(results, pids)]
    events += [*_instants(results.events, pids), *_decisions(results.decisions)]
    scenario, summary = results.summary["scenario"], results.summary
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "scenario": str(scenario["name"]),
            "policy": str(summary.get("policy")),
            "seed": str(summary.get("seed")),
        },
    }


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _names(pids: Mapping[str, int]) -> Iterator[TraceEvent]:
    for name, pid in {"host": HOST_PID, **pids}.items():
        title = name if pid == HOST_PID else f"vm {name}"
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": title}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
        threads = {EVENTS_TID: "events"} | ({POLICY_TID: "policy"} if pid == HOST_PID else {PHASES_TID: "phases"})
        for tid, thread in threads.items():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": thread}}


def _counters(results: RunResults, pids: Mapping[str, int]) -> Iterator[TraceEvent]:
    last: dict[tuple[int, str], dict[str, float]] = {}

    def counter(t: float, pid: int, name: str, values: dict[str, float]) -> Iterator[TraceEvent]:
        if last.get((pid, name)) != values:
            last[pid, name] = values
            yield {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _microseconds(t), "args": values}

    for row in _rows(results.samples):
        yield from counter(row["t"], HOST_PID, "host memory", {"used_bytes": row["host_used_bytes"]})
        if row["host_pressure"] is not None:
            yield from counter(row["t"], HOST_PID, "host pressure", {"some_avg10_percent": row["host_pressure"]})
        yield from counter(row["t"], pids[row["vm"]], "memory", {name: row[name] for name in _MEMORY})
    for row in _rows(results.ledger):
        yield from counter(row["t"], pids[row["vm"]], "ledger", {cause: row[cause] for cause in LEDGER_CAUSES})


def _phases(results: RunResults, pids: Mapping[str, int]) -> Iterator[TraceEvent]:
    end = float(results.summary.get("seconds", 0.0))
    running: dict[str, tuple[float, str]] = {}
    for row in _rows(results.events):
        vm = row["vm"]
        if vm not in pids or row["event"] not in (PHASE, *ENDS):
            continue
        if vm in running:
            yield _slice(pids[vm], *running.pop(vm), row["t"])
        if row["event"] == PHASE:
            running[vm] = row["t"], str(row["fields"].get("name", PHASE))
    for vm, (begin, name) in running.items():
        yield _slice(pids[vm], begin, name, max(end, begin))


def _slice(pid: int, begin: float, name: str, end: float) -> TraceEvent:
    start = _microseconds(begin)
    duration = _microseconds(end) - start
    return {"ph": "X", "name": name, "cat": PHASE, "pid": pid, "tid": PHASES_TID, "ts": start, "dur": duration}


def _instants(events: RunTable, pids: Mapping[str, int]) -> Iterator[TraceEvent]:
    for row in _rows(events):
        if row["event"] != PHASE:
            yield _instant(row["t"], pids.get(row["vm"], HOST_PID), EVENTS_TID, row["event"], row["fields"])


def _decisions(decisions: RunTable) -> Iterator[TraceEvent]:
    for row in _rows(decisions):
        actions = [f"{action['action']} {action['vm']} {action['size']}" for action in row["actions"]]
        details = {"reason": row["reason"], "actions": "; ".join(actions)}
        if row["problem"] is not None:
            details["problem"] = row["problem"]
        name = f"{row['policy']}: {len(actions)} action{'s' if len(actions) != 1 else ''}"
        yield _instant(row["t"], HOST_PID, POLICY_TID, name, details)


def _instant(t: float, pid: int, tid: int, name: str, details: Mapping[str, Any]) -> TraceEvent:
    return {
        "ph": "i",
        "s": "t",
        "name": name,
        "cat": "event",
        "pid": pid,
        "tid": tid,
        "ts": _microseconds(t),
        "args": dict(details),
    }


def _rows(table: RunTable) -> Iterable[dict[str, Any]]:
    return (dict(zip(table.columns, row, strict=True)) for row in table.rows)
