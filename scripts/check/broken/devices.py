"""Tries broken devices: each is our daemon with one fault, which the cases of a device judge."""

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from scripts.check.broken.fault import Fault
from scripts.check.broken.trying import Trying, crash_of
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.trial import Trial
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.run import run_cases
from scripts.check.verdict import Result, TargetError
from scripts.child_processes import module_environment, python_module

FEATURES: Final = "packed=on,free-page-hint=on,page-poison=on,must-tell-host=on"
"""Every feature that a case may need."""

START_SECONDS: Final = 10.0


def serving(name: str, path: Path) -> list[str]:
    """Return the command that is the daemon with fault ``name`` at ``path``."""
    module = "scripts.check.broken.serve"
    return python_module(module, name, "--socket-path", str(path), "--features", FEATURES)


def try_fault(fault: Fault) -> Trying:
    """Run the cases that have to catch ``fault`` against a daemon that has it.

    Raises:
        BalloonError: the daemon does not start.
    """
    with tempfile.TemporaryDirectory(prefix="balloon-broken-") as scratch:
        path, said = Path(scratch) / "socket", Path(scratch) / "stderr"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                serving(fault.name, path),
                env=module_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            results = _results(fault, path, process)
        finally:
            process.kill()
            process.wait()
        return Trying(fault, results, crash_of(said.read_text(errors="replace")))


def _results(fault: Fault, path: Path, process: "subprocess.Popen[bytes]") -> list[Result]:
    def is_there() -> bool:
        with contextlib.suppress(TargetError):
            VhostUserDevice(path)
            return True
        return process.poll() is not None

    begin = time.monotonic()
    if not becomes_true(is_there, START_SECONDS) or process.poll() is not None:
        raise BalloonError(f"the daemon with the fault {fault.name} did not start ({time.monotonic() - begin:.1f} s)")
    device = VhostUserDevice(path)
    cases = [DEVICE_CASES[name] for name in fault.caught_by]
    return list(run_cases(cases, lambda: Trial(device)))
