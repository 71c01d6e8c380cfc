"""The demonstration as a user runs it, with smaller machines: its outcome, and that it leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.processes import processes_with

ROOT: Final = Path(__file__).resolve().parent.parent.parent
MIB: Final = 1 << 20


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short directory for the demonstration's own: the path of a unix socket has to fit 107 characters."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as directory:
        yield Path(directory)


def start(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demonstration in plain mode with its temporary files in ``scratch``."""
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.demonstration", "--plain", "--memory", "256M", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
    )


def until_vm_a_runs(demonstration: subprocess.Popen[str], scratch: Path) -> int:
    """Wait until VM A is started, and return its process id. Rows of the table are too rare to wait for a phase."""
    assert demonstration.stdout is not None
    assert demonstration.stderr is not None
    while "VM A starts" not in (line := demonstration.stdout.readline()):
        assert line != "", demonstration.stderr.read()
    end = time.monotonic() + 20
    while not (guests := processes_with(f"-m guest --socket-path {scratch}")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return min(guests)  # VM A started first; VM B may be there too by now


def groups_of(pid: int) -> list[Path]:
    """Return the memory cgroups that the demonstration with this process id has left."""
    return list(Path("/sys/fs/cgroup").rglob(f"vhost-user-balloon-run-{pid}"))


def assert_nothing_left(scratch: Path, pid: int) -> None:
    assert processes_with(str(scratch)) == {}
    assert groups_of(pid) == []
    assert [path.name for path in scratch.iterdir() if path.name.startswith("balloon-run-")] == []


def played(scratch: Path, *arguments: str) -> dict[str, Any]:
    """Play the demonstration to its end and return what it wrote as JSON."""
    result = scratch / "result.json"
    with start(scratch, "--json", str(result), *arguments) as process:
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "WITH free page reporting, VM A used 192.0 MiB" in " ".join(output.split())
    assert_nothing_left(scratch, process.pid)
    report: dict[str, Any] = json.loads(result.read_text())
    return report


@pytest.mark.parametrize("budget", ["auto", "accounting"])
def test_second_machine_fits_with_reporting_and_runs_out_without(budget: str, scratch: Path) -> None:
    report = played(scratch, "--budget", budget)
    assert report["ok"] is True
    with_reporting, without = report["rounds"]

    assert with_reporting["a_after_bytes"] <= 20 * MIB
    assert with_reporting["a_reports"] > 0
    assert with_reporting["b_verified_pages"] == 192 * MIB // 4096
    assert with_reporting["b_corrupted_pages"] == 0
    assert with_reporting["host_peak_bytes"] <= with_reporting["budget_bytes"]
    for cost in (with_reporting["a_cost"], with_reporting["b_cost"]):
        assert cost["peak_resident_bytes"] >= 192 * MIB
        assert cost["minor_faults"] >= 192 * MIB // 4096

    assert without["a_after_bytes"] >= 192 * MIB
    assert without["a_reports"] == 0
    assert without["b_verified_pages"] is None
    assert without["stopped_by"] is not None
    assert without["b_peak_bytes"] < 192 * MIB
    # What it is said to have had when it was stopped is what the kernel's books have, but for the program itself.
    assert 0 <= without["b_cost"]["peak_resident_bytes"] - without["b_peak_bytes"] < 50 * MIB


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_cleans_everything_up(number: int, status: int, scratch: Path) -> None:
    with start(scratch) as process:
        until_vm_a_runs(process, scratch)  # daemon, guest, group and directory are all there
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors == ""
    assert_nothing_left(scratch, process.pid)


def test_machine_that_dies_unexpectedly_is_one_line_and_a_failure(scratch: Path) -> None:
    with start(scratch) as process:
        os.kill(until_vm_a_runs(process, scratch), signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "balloon-demo: vm a ended (killed by SIGKILL): no message\n"
    assert_nothing_left(scratch, process.pid)


def test_leftovers_of_a_killed_run_are_removed_by_the_next(scratch: Path) -> None:
    with start(scratch) as killed:
        until_vm_a_runs(killed, scratch)
        killed.kill()
    (left,) = scratch.iterdir()
    assert left.name.startswith(f"balloon-run-{killed.pid}-")
    end = time.monotonic() + 20
    while processes_with(str(scratch)):
        assert time.monotonic() < end
        time.sleep(0.05)
    with start(scratch) as process:
        assert process.stdout is not None
        while "VM A" not in process.stdout.readline():
            pass
        assert not left.exists()
        assert groups_of(killed.pid) == []
        process.terminate()
        process.communicate(timeout=30)
    assert_nothing_left(scratch, process.pid)


def test_directory_too_deep_for_a_socket_is_not_used(scratch: Path) -> None:
    deep = scratch / ("x" * 100)
    deep.mkdir()
    with start(deep) as process:
        assert process.stdout is not None
        while "hold" not in (line := process.stdout.readline()):
            assert line != ""
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, "")
    assert list(deep.iterdir()) == []
    assert list(Path("/tmp").glob(f"balloon-run-{process.pid}-*")) == []


@pytest.mark.parametrize("arguments", [[], ["--json", "-"]])
def test_full_disk_is_one_line(arguments: list[str], scratch: Path) -> None:
    command = [sys.executable, "-m", "scripts.demonstration", "--plain", "--memory", "256M", *arguments]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.endswith("No space left on device\n")
    assert arguments or done.stderr.count("\n") == 1
    assert list(scratch.iterdir()) == []
