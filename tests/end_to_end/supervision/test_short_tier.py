"""A few files of the daemon's own tests, with a worker process that serves the machines."""

import os
import subprocess
import sys

from tests.harness.processes import ROOT, WORKERS_VARIABLE

TIER = (
    "tests/end_to_end/daemon/test_statistics.py",
    "tests/end_to_end/daemon/test_crash.py::test_report_outstanding_when_the_connection_drops_is_served_once",
)


def test_daemon_with_a_worker_passes_tests_of_a_daemon_of_one_process() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TIER],
        cwd=ROOT,
        env=environment | {WORKERS_VARIABLE: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
