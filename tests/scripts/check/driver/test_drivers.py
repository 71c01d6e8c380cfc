"""Drivers that are judged: our emulated guest, and an unmodified Linux."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.recording.lines import read_records
from protocol.recording.records import TakenChain
from tests.harness.processes import ROOT


def judged(directory: Path, start: str, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Judge the driver that a command brings; return exit status, standard error, and the results by case."""
    result = directory / "result.json"
    path = directory / "check.sock"
    command = f"{sys.executable} -P -m {start.replace('SOCKET', str(path))}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.check", "driver", "--socket-path", str(path), "--start", command),
            *("--json", str(result), *arguments),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=200,
        check=False,
    )
    results = json.loads(result.read_text())["results"] if result.exists() else []
    return done.returncode, done.stderr, {one["case"]: one for one in results}


def kept(results: dict[str, Any]) -> set[str]:
    """Return the cases that passed."""
    return {case for case, one in results.items() if one["verdict"] == "PASS"}


MUST = {
    "driver-attached",
    "driver-features",
    "driver-ring-rules",
    "driver-kicks",
    "driver-report-untouched",
    "driver-report-once",
    "driver-inflates",
    "driver-inflated-untouched",
    "driver-inflate-form",
    "driver-deflates",
    "driver-statistics",
    "driver-statistics-one",
    "driver-statistics-form",
    "driver-deflated-untouched",
    "driver-buffers-unchanged",
    "driver-buffers-apart",
    "driver-unknown-feature",
    "driver-ring-places",
    "driver-messages",
    "driver-memory-table",
    "driver-descriptors-told",
    "driver-queue-count",
    "driver-answers",
    "driver-hints-given",
    "driver-hints-stop",
}


@pytest.mark.processes
def test_our_driver_is_judged(tmp_path: Path) -> None:
    record = tmp_path / "record"
    options = ("--seconds", "8", "--record", str(record))
    status, _, results = judged(tmp_path, "guest --socket-path SOCKET --memory 256M --workload idle", *options)
    assert kept(results) >= MUST, {case: one["reason"] for case, one in results.items()}
    assert status == 0
    with record.open("rb") as file:
        chains = [one for one in read_records(file) if isinstance(one, TakenChain)]
    assert {chain.queue for chain in chains} == {"inflate", "deflate", "stats", "free_page", "reporting"}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("guest", "options", "cases"),
    [
        ("--page-poison 0xaa", (), {"driver-report-poisoned", "driver-deflated-filled", "driver-poison-written"}),
        (
            "--in-order on",
            ("--features", "in-order=on,must-tell-host=on,deflate-on-oom=off"),
            {"driver-in-order", "driver-deflates-only-when-asked", "driver-deflated-untouched"},
        ),
        (
            "--ring packed --notify in-band",
            ("--in-band",),
            {"driver-in-band-kick", "driver-hints-stop", "driver-hints-released"},
        ),
    ],
)
def test_our_driver_keeps_the_rules_of_a_feature(
    tmp_path: Path, guest: str, options: tuple[str, ...], cases: set[str]
) -> None:
    start = f"guest --socket-path SOCKET --memory 128M --workload churn:size=48M,seconds=40 {guest}"
    status, _, results = judged(tmp_path, start, "--seconds", "5", *options)
    assert kept(results) >= cases, {case: results[case]["reason"] for case in cases}
    assert status == 0, [one for one in results.values() if one["verdict"] == "FAIL"]


@pytest.mark.real_kernel
def test_linux_is_judged(tmp_path: Path) -> None:
    load = "head -c 64M /dev/urandom > /dev/shm/f; rm /dev/shm/f; sleep 60"  # so that pages are there to be reported
    linux = f"guest.linux --socket-path SOCKET --memory 256M -- sh -c '{load}'"
    status, _, results = judged(tmp_path, linux, "--seconds", "20")  # longer than it takes on an idle system
    assert kept(results) >= {*MUST, "driver-relies-on-content"}, {case: one["reason"] for case, one in results.items()}
    assert "32 ranges" in results["driver-report-pace"]["reason"]
    # Its front-end does not look at the number of the request that a reply is to.
    assert {case for case, one in results.items() if one["verdict"] == "FAIL"} == {"driver-hangs-up"}
    assert status == 1


@pytest.mark.processes
def test_driver_that_does_not_attach_is_one_line(tmp_path: Path) -> None:
    status, error, results = judged(tmp_path, "protocol.nothing", "--attach-seconds", "10")
    assert status == 3
    assert "\nballoon-check: no driver attached: " in error
    assert "ended with status 1: " in error
    assert error.endswith("No module named protocol.nothing\n")
    assert "Traceback" not in error
    assert results == {}
