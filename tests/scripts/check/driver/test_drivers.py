"""Drivers that are judged: our emulated guest, and an unmodified Linux."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.recording.lines import read_records
from protocol.recording.records import TakenChain
from tests.harness.processes import DEADLINE, ROOT


class Judging:
    """A run of ``balloon-check driver`` for the driver that a command brings, in a directory of its own."""

    def __init__(self, directory: Path, start: str, *arguments: str) -> None:
        self._result = directory / "result.json"
        path = directory / "check.sock"
        command = f"{sys.executable} -P -m {start.replace('SOCKET', str(path))}"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "scripts.check", "driver", "--socket-path", str(path), "--start", command),
                *("--json", str(self._result), *arguments),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def end(self) -> tuple[int, str, dict[str, Any]]:
        """Wait for it; return exit status, standard error, and the results by case."""
        _, error = self._process.communicate(timeout=200)
        results = json.loads(self._result.read_text())["results"] if self._result.exists() else []
        return self._process.returncode, error, {one["case"]: one for one in results}

    def close(self) -> None:
        """End it where no test has waited for it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate(timeout=DEADLINE)


def judged(directory: Path, start: str, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Judge the driver that a command brings: see :meth:`Judging.end`."""
    return Judging(directory, start, *arguments).end()


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


RULES = {
    "--page-poison 0xaa": (
        (),
        {"driver-report-poisoned", "driver-deflated-filled", "driver-poison-written"},
    ),
    "--in-order on": (
        ("--features", "in-order=on,must-tell-host=on,deflate-on-oom=off"),
        {"driver-in-order", "driver-deflates-only-when-asked", "driver-deflated-untouched"},
    ),
    "--ring packed --notify in-band": (
        ("--in-band",),
        {"driver-in-band-kick", "driver-hints-stop", "driver-hints-released"},
    ),
}
"""Options of our guest that have to do with a feature: those of the check, and the cases that then have to pass."""


class Judgings:
    """The runs for our guest, all at once: most of the time a driver is only watched."""

    def __init__(self, directory: Path) -> None:
        self.record = directory / "record"
        plain = "guest --socket-path SOCKET --memory 256M --workload idle"
        self.plain = self._begin(directory / "plain", plain, "--seconds", "8", "--record", str(self.record))
        churn = "guest --socket-path SOCKET --memory 128M --workload churn:size=48M,seconds=40"
        self.of_rule = {
            guest: self._begin(directory / str(number), f"{churn} {guest}", "--seconds", "5", *options)
            for number, (guest, (options, _)) in enumerate(RULES.items())
        }

    @staticmethod
    def _begin(directory: Path, start: str, *arguments: str) -> Judging:
        directory.mkdir()
        return Judging(directory, start, *arguments)

    def close(self) -> None:
        """End those that no test has waited for."""
        for one in (self.plain, *self.of_rule.values()):
            one.close()


@pytest.fixture(scope="module")
def judgings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judgings]:
    judgings = Judgings(tmp_path_factory.mktemp("judgings"))
    yield judgings
    judgings.close()


@pytest.mark.processes
def test_our_driver_is_judged(judgings: Judgings) -> None:
    status, _, results = judgings.plain.end()
    assert kept(results) >= MUST, {case: one["reason"] for case, one in results.items()}
    assert status == 0
    with judgings.record.open("rb") as file:
        chains = [one for one in read_records(file) if isinstance(one, TakenChain)]
    assert {chain.queue for chain in chains} == {"inflate", "deflate", "stats", "free_page", "reporting"}


@pytest.mark.processes
@pytest.mark.parametrize("guest", RULES)
def test_our_driver_keeps_the_rules_of_a_feature(judgings: Judgings, guest: str) -> None:
    status, _, results = judgings.of_rule[guest].end()
    _, cases = RULES[guest]
    assert kept(results) >= cases, {case: results[case]["reason"] for case in cases}
    assert status == 0, [one for one in results.values() if one["verdict"] == "FAIL"]


@pytest.mark.real_kernel
def test_linux_is_judged(tmp_path: Path) -> None:
    load = "head -c 64M /dev/urandom > /dev/shm/f; rm /dev/shm/f; sleep 60"  # so that pages are there to be reported
    linux = f"guest.linux --socket-path SOCKET --memory 256M -- sh -c '{load}'"
    status, _, results = judged(tmp_path, linux, "--seconds", "20")  # longer than it takes on an idle system
    if results["driver-relies-on-content"]["verdict"] == "NOT EXERCISED":  # a busy one: the load has yet to come
        status, _, results = judged(tmp_path, linux.replace("sleep 60", "sleep 150"), "--seconds", "90")
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
