"""The whole device run against our daemon: every MUST is kept, and each finding is one that is known."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.check.__main__ import main
from scripts.check.broken.devices import FEATURES as FEATURES_OF_ALL_CASES
from scripts.check.device.all_cases import DEVICE_CASES
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess

KNOWN = {
    "queues-as-numbered": "both numberings of drivers are understood",
    "range-unaligned-is": "ragged ranges are kept",
    "range-readable": "what is device-readable is not changed, so not discarded",
}
"""What our device does where the text says nothing."""

FEATURES = ["--features", FEATURES_OF_ALL_CASES]


class Judging:
    """A run of ``balloon-check device`` with ``arguments``, whose report goes to a file of ``directory``."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._result = directory / "result.json"
        self._is_awaited = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.check", "device", *arguments, "--json", str(self._result)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def end(self) -> tuple[int, dict[str, dict[str, str]]]:
        """Wait for it; return its exit status and the results by case."""
        self._is_awaited = True
        _, error = self._process.communicate(timeout=400)
        assert error == ""
        return self._process.returncode, {one["case"]: one for one in json.loads(self._result.read_text())["results"]}

    def close(self, daemon: DaemonProcess | None = None) -> None:
        """End it where no test has waited for it; what ``daemon`` said of that does not count."""
        if not self._is_awaited:
            self._process.terminate()
            self._process.communicate(timeout=DEADLINE)
            if daemon is not None:
                daemon.forget_stderr()


RINGS = {"split": ("--ring", "split"), "packed": ("*/packed",)}
"""The cases of a run, by ring format. Those of no format are with the split ring's."""

QEMU = "qemu"


@pytest.fixture(scope="module")
def judgings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Judging]]:
    """The runs against our daemon, one of its own for each ring format, and the one against QEMU, all at the same time:
    a good part of the time goes into waiting for what must not come."""
    with ExitStack() as stack:
        runs = {}
        for ring, cases in RINGS.items():
            place = tmp_path_factory.mktemp(ring)
            control = place / "control.sock"
            daemon = stack.enter_context(DaemonProcess(place, *FEATURES, "--control", str(control)))
            runs[ring] = Judging(place, "--socket-path", str(daemon.socket_path), "--qmp", str(control), *cases)
            stack.callback(runs[ring].close, daemon)
        if shutil.which("qemu-system-x86_64") is not None:
            runs[QEMU] = Judging(tmp_path_factory.mktemp(QEMU), "--qemu", "--quick")
            stack.callback(runs[QEMU].close)
        yield runs


@pytest.mark.processes
@pytest.mark.parametrize("ring", RINGS)
def test_every_must_is_kept(judgings: dict[str, Judging], ring: str) -> None:
    status, results = judgings[ring].end()
    failed = {case: one["reason"] for case, one in results.items() if one["verdict"] == "FAIL"}
    assert failed == {}
    found = {case.partition("/")[0] for case, one in results.items() if one["verdict"] == "FINDING"}
    assert found == KNOWN.keys() & {case.partition("/")[0] for case in results}
    untried = {case for case, one in results.items() if one["verdict"] == "NOT EXERCISED"}
    assert untried <= {"used-flags-with-event-idx/packed"}
    assert status == 0


@pytest.mark.processes
def test_balloon_of_qemu_is_judged(judgings: dict[str, Judging]) -> None:
    """It fails for what its text forbids, and for nothing else."""
    if QEMU not in judgings:
        pytest.skip("no qemu-system-x86_64 on PATH")
    status, results = judgings[QEMU].end()
    failed = {case for case, one in results.items() if one["verdict"] == "FAIL"}
    # It looks for an indirect table at the head of a chain only (hw/virtio/virtio.c), against virtio 1.2, 2.7.5.3.2.
    assert failed == {"split-direct-then-indirect"}
    assert status == 1
    passed = [case for case, one in results.items() if one["verdict"] == "PASS"]
    assert {"report-exact/split", "report-exact/packed", "poison-kept/split", "inflate-exact/split"} <= set(passed)
    assert len(passed) > 70


def test_cases_are_listed_with_their_clauses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--list", "report-exact"]) == 0
    text = capsys.readouterr().out
    assert "report-exact/split (quick)" in text
    assert "edge case 126" in text


def test_quick_run_has_the_cases_that_matter_most() -> None:
    quick = {case.name for case in DEVICE_CASES.chosen([], quick=True)}
    assert {"report-exact/split", "report-exact/packed", "kick-only-when-asked/split", "poison-kept/split"} <= quick
    assert len(quick) < len(DEVICE_CASES) * 2 / 3


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["device"], 2, "name one target"),
        (["device", "--socket-path", "/a", "--qemu"], 2, "name one target"),
        (["device", "--socket-path", "/nowhere/balloon.sock"], 3, "/nowhere/balloon.sock: No such file"),
        (["device", "--qemu", "/nowhere/qemu"], 3, "/nowhere/qemu: no such program"),
        (["device", "--qemu", "report-exact"], 3, "report-exact: no such program (a case's name goes before --qemu)"),
        (["personalities", "--qemu", "/nowhere/qemu"], 3, "/nowhere/qemu: no such program\n"),
        (["device", "--socket-path", "/a", "S-99"], 2, "no case or clause is called 'S-99'"),
        (["device", "--start", "true", "--socket-path", "/a"], 2, "--start goes with --generic"),
        (["device", "--generic"], 2, "--generic needs --socket-path"),
        (["driver"], 2, "--socket-path is needed"),
        (["driver", "--socket-path", "/a", "--misbehave", "one-page-to-many"], 2, "such as one-page-too-many"),
        (["driver", "--socket-path", "/a", "--seconds", "0"], 2, "seconds are above 0"),
        (["broken", "one-page-to-many"], 2, "such as one-page-too-many"),
        (["broken", "--serve", "one-page-too-many"], 2, "--serve needs --socket-path"),
    ],
)
def test_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.processes
def test_report_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DaemonProcess(tmp_path) as daemon:
        words = ["device", "--socket-path", str(daemon.socket_path), "report-one-page/split", "--json", "/dev/full"]
        assert main(words) == 1
    assert capsys.readouterr().err == "balloon-check: --json /dev/full: No space left on device\n"


@pytest.mark.processes
def test_full_standard_output_is_named(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, open("/dev/full", "wb") as full:
        for words in (["--socket-path", str(daemon.socket_path), "report-one-page/split"], ["--list"]):
            done = subprocess.run(
                [sys.executable, "-m", "scripts.check", "device", *words],
                cwd=ROOT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.returncode, done.stderr) == (
                1,
                "balloon-check: standard output: No space left on device\n",
            )


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_that_is_interrupted_leaves_no_report(tmp_path: Path, number: signal.Signals) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    with DaemonProcess(tmp_path) as daemon:
        check = _judging(daemon.socket_path, "--json", str(reports / "result.json"))
        assert check.stdout is not None
        with check.stdout:
            assert check.stdout.readline().startswith("judging")
            assert list(reports.iterdir()) != []
            check.send_signal(number)
            check.stdout.read()
        assert check.wait(DEADLINE) == 128 + number
    assert list(reports.iterdir()) == []


def _judging(path: Path, *options: str) -> "subprocess.Popen[str]":
    words = ["device", "--socket-path", str(path), "-v", *options]
    command = [sys.executable, "-u", "-m", "scripts.check", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.processes
def test_daemon_that_is_killed_fails_one_case(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    try:
        check = _judging(daemon.socket_path, "--json", str(tmp_path / "result.json"))
        assert check.stdout is not None
        with check.stdout:
            assert any(line.startswith("PASS") for line in check.stdout)
            daemon.process.kill()
            check.stdout.read()
        assert check.wait(DEADLINE) == 1
    finally:
        daemon.kill()
    results = json.loads((tmp_path / "result.json").read_text())["results"]
    failed = [one["broken"] for one in results if one["verdict"] == "FAIL"]
    assert failed == [["M-alive"]]
    assert all(one["reason"].startswith("the target is gone") for one in results[-50:])
