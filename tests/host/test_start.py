"""What the daemon loads before it runs: nothing that it does not need, since starts are waited for."""

import json
import subprocess
import sys

import pytest

from tests.harness.processes import DEADLINE

PROGRAM = """
import gc, json, sys
from host.__main__ import main

status = main(json.loads(sys.argv[1]))
print(json.dumps({"status": status, "collects": gc.isenabled(), "modules": sorted(sys.modules)}), file=sys.stderr)
"""

COSTLY = {"ssl", "importlib.metadata", "tomllib", "subprocess", "http.client"}


@pytest.mark.parametrize(
    ("words", "status", "unneeded"),
    [
        (["--print-capabilities"], 0, {"asyncio", "construct", "logging", "host.command", *COSTLY}),
        (["--fd", "999"], 1, COSTLY - {"subprocess"}),
        (
            ["--socket-path", "/missing/s", "--workers", "1"],
            1,
            {"construct", "host.sessions", *COSTLY} - {"subprocess"},
        ),
    ],
    ids=["capabilities", "fd", "supervisor"],
)
def test_modules_that_are_not_needed_are_not_loaded(words: list[str], status: int, unneeded: set[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(words)]
    result = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE, text=True)
    found = json.loads(result.stderr.splitlines()[-1])
    assert found["status"] == status, result.stderr
    assert not unneeded & set(found["modules"])
    assert found["collects"]
