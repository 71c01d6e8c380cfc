"""The results of a run as files in a directory.

``summary.json``
    The scenario, the score, and how each machine ended.
``events.jsonl``, ``decisions.jsonl``
    One object a line, in order of time.
``ledger.csv``
    One line for each sample of each machine that has a ledger: ``t``, ``vm``, ``not_returned_bytes``, the bytes of each
    cause (they add up to it), and last ``page_cache_bytes``, which is not part of the sum.
``maps.jsonl``
    One line for each machine at up to 120 moments: ``t``, ``vm``, and the map of its memory
    (``guest/mm/views/memory_map.py`` says what the layers' texts mean). Of a real kernel only ``resident`` is known.
``samples.csv``
    One line for each sample of each machine: its memory, and what the host holds in all.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TextIO

from host.policy.policy import Action, SetBalloon
from protocol.errors import BalloonError
from scripts.report_file import report_file
from scripts.scenario.run_record import LEDGER_CAUSES, RecordedDecision, RunRecord, VmOutcome
from scripts.scenario.scenario import Scenario
from scripts.scenario.score import score_of

SUMMARY: Final = "summary.json"
EVENTS: Final = "events.jsonl"
LEDGER: Final = "ledger.csv"
DECISIONS: Final = "decisions.jsonl"
SAMPLES: Final = "samples.csv"
MAPS: Final = "maps.jsonl"

FORMAT: Final = 1
"""The version of these files, in the summary. It changes when a reader of the last version would be misled."""

LEDGER_COLUMNS: Final = ("t", "vm", "not_returned_bytes", *LEDGER_CAUSES, "page_cache_bytes")

_SAMPLE_BYTES: Final = (
    "allocated_bytes",
    "free_bytes",
    "reported_bytes",
    "resident_bytes",
    "balloon_bytes",
    "target_bytes",
    "cache_bytes",
    "refaulted_bytes",
)
SAMPLE_COLUMNS: Final = ("t", "vm", "state", *_SAMPLE_BYTES, "stall_seconds", "host_used_bytes", "host_pressure")


def prepare_directory(directory: Path, last: str = SUMMARY) -> None:
    """Make the directory, before a long run; ``last`` is the file that is written at its end.

    Raises:
        BalloonError: it cannot be made, or nothing can be written in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / last).touch()
    except OSError as error:
        raise BalloonError(f"--out {directory}: {error.strerror}") from error


def write_results(record: RunRecord, directory: Path) -> None:
    """Write all files; those of an earlier run are replaced, once all of them could be written.

    Raises:
        BalloonError: a file cannot be written.
    """
    with ExitStack() as files:

        def stream(name: str) -> TextIO:
            return files.enter_context(report_file(directory / name, "--out"))

        # Entered first, so it is replaced last: a directory with a summary of this run is complete.
        about = stream(SUMMARY)
        # Those of a real run come from several processes, which are read one after the other.
        _write_lines(stream(EVENTS), sorted(record.events, key=lambda event: float(event["t"])))
        _write_lines(stream(DECISIONS), map(decision_json, record.decisions))
        _write_lines(stream(MAPS), _map_lines(record))
        _write_table(stream(LEDGER), LEDGER_COLUMNS, _ledger_rows(record))
        _write_table(stream(SAMPLES), SAMPLE_COLUMNS, _sample_rows(record))
        about.write(json.dumps(summary(record), indent=2) + "\n")
        about.flush()  # a full disk is seen before anything is replaced


def summary(record: RunRecord) -> dict[str, Any]:
    """Return the summary as JSON values."""
    return {
        "format": FORMAT,
        "scenario": scenario_json(record.scenario),
        "policy": record.policy,
        "parameters": dict(record.scenario.policy.parameters),
        "seed": record.seed,
        "virtual": record.is_virtual,
        "interrupted": record.interrupted,
        "problem": record.problem,
        "seconds": round(record.seconds, 6),
        "score": score_of(record).as_json(),
        "vms": {name: outcome_json(outcome) for name, outcome in record.outcomes.items()},
    }


def scenario_json(scenario: Scenario) -> dict[str, Any]:
    """Return what a reader needs of the scenario: budget, duration, and the size and kind of each machine."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "budget_bytes": scenario.budget_bytes,
        "swap_bytes": scenario.swap_bytes,
        "duration": scenario.duration,
        "sample_interval": scenario.sample_interval,
        "vms": {
            vm.name: {
                "kind": vm.kind.value,
                "memory_bytes": vm.memory_bytes,
                "start": vm.start,
                "reporter": vm.reporter,
                "workloads": list(vm.workloads),
                "command": vm.command,
            }
            for vm in scenario.vms
        },
    }


def outcome_json(outcome: VmOutcome) -> dict[str, Any]:
    """Return how one machine ended as JSON values."""
    values = asdict(outcome) | {"state": outcome.state.value}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def decision_json(decision: RecordedDecision) -> dict[str, Any]:
    """Return one decision as JSON values; ``problem`` only where there was one. The names are balloon-policy's."""
    values = {
        "t": decision.t,
        "policy": decision.policy,
        "reason": decision.reason,
        "inputs": decision.inputs,
        "actions": [_action_json(action) for action in decision.actions],
    }
    return values if decision.error is None else values | {"problem": decision.error}


def _action_json(action: Action) -> dict[str, Any]:
    kind = "balloon" if isinstance(action, SetBalloon) else "reclaim"
    return {"action": kind, "vm": action.vm, "size": action.size}


def _map_lines(record: RunRecord) -> Iterable[Mapping[str, Any]]:
    for moment in () if record.maps is None else record.maps.rounds:
        for name, taken in moment.maps.items():
            yield {"t": moment.t, "vm": name, **taken}


def _ledger_rows(record: RunRecord) -> Iterable[tuple[Any, ...]]:
    for sample in record.samples:
        for name, vm in sample.vms.items():
            if vm.ledger is not None:
                causes = (vm.ledger.causes.get(cause, 0) for cause in LEDGER_CAUSES)
                yield sample.t, name, vm.ledger.not_returned_bytes, *causes, vm.ledger.page_cache_bytes


def _sample_rows(record: RunRecord) -> Iterable[tuple[Any, ...]]:
    for sample in record.samples:
        pressure = None if sample.pressure is None else round(sample.pressure, 3)
        for name, vm in sample.vms.items():
            sizes = (getattr(vm, column) for column in _SAMPLE_BYTES)
            yield sample.t, name, vm.state.value, *sizes, round(vm.stall_seconds, 6), sample.used_bytes, pressure


def _write_lines(file: TextIO, objects: Iterable[Mapping[str, Any]]) -> None:
    file.writelines(json.dumps(line) + "\n" for line in objects)
    file.flush()


def _write_table(file: TextIO, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    file.flush()
