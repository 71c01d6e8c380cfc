"""Tries broken devices: each is our daemon with one fault, which the cases of a device judge."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from scripts.check.broken.fault import Fault
from scripts.check.broken.forked_devices import ForkedDevice, ForkedDevices
from scripts.check.broken.trying import Trying, crash_of
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.trial import Trial
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.generic.backend import open_backend
from scripts.check.generic.target import Target
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.run import run_cases
from scripts.check.suite import Case
from scripts.check.verdict import Result, TargetError
from scripts.child_processes import python_module

FEATURES: Final = ",".join(
    f"{name}=on"
    for name in (
        "packed",
        "in-order",
        "free-page-hint",
        "page-poison",
        "must-tell-host",
        "draft-init-reported",
        "draft-init-on-inflate",
    )
)
"""Every feature that a case may need."""

START_SECONDS: Final = 30.0


def serving(name: str, *options: str) -> list[str]:
    """Return the command that is the daemon with fault ``name``, which takes ``options``."""
    return python_module("scripts.check.broken.serve", *_words(name, *options))


def _words(name: str, *options: str) -> list[str]:
    return [name, "--features", FEATURES, *options]


def try_fault(fault: Fault, devices: ForkedDevices) -> Trying:
    """Run the cases that have to catch ``fault`` against a daemon that has it, one of ``devices``.

    Raises:
        BalloonError: the daemon does not start.
    """
    with tempfile.TemporaryDirectory(prefix="balloon-broken-") as scratch:
        path, control, said = (Path(scratch) / name for name in ("socket", "control", "stderr"))
        device = devices.start(_words(fault.name, "--socket-path", str(path), "--control", str(control)), said)
        try:
            results = _results(fault, path, control, device)
        finally:
            device.kill()
        return Trying(fault, results, crash_of(said.read_text(errors="replace")))


def _results(fault: Fault, path: Path, control: Path, process: ForkedDevice) -> list[Result]:
    def is_there() -> bool:
        with contextlib.suppress(TargetError):
            VhostUserDevice(path)
            return True
        return process.has_ended()

    begin = time.monotonic()
    if not becomes_true(is_there, START_SECONDS) or process.has_ended():
        raise BalloonError(f"the daemon with the fault {fault.name} did not start ({time.monotonic() - begin:.1f} s)")
    of_device, generic = cases_of(fault)
    device = VhostUserDevice(path, qmp=control)
    results = list(run_cases(of_device, lambda: Trial(device)))
    if generic:
        with open_backend(path) as backend:
            results += run_cases(generic, backend.fresh)
    return results


def cases_of(fault: Fault) -> tuple[list[Case[Trial]], list[Case[Target]]]:
    """Return the cases that have to catch ``fault``: those of the device suite and those of ``--generic``."""
    of_device = {case.name: case for case in DEVICE_CASES}
    return (
        [of_device[name] for name in fault.caught_by if name in of_device],
        [GENERIC_CASES[name] for name in fault.caught_by if name not in of_device],
    )
