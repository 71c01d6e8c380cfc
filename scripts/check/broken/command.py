"""``balloon-check broken``: run each broken device against the cases that have to catch it."""

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from protocol.errors import BalloonError, UsageError
from protocol.process.listening_socket import ListeningSocket
from scripts.check.broken.all_faults import ALL_FAULTS
from scripts.check.broken.fault import Fault
from scripts.check.broken.fence_faults import FENCE_FAULTS, try_fence
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.trial import Trial
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.generic.backend import open_backend
from scripts.check.generic.target import Target
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.names import nearest
from scripts.check.run import run_cases
from scripts.check.suite import Case
from scripts.check.verdict import Result, TargetError, Verdict
from scripts.child_processes import module_environment, python_module

FEATURES: Final = "packed=on,free-page-hint=on,page-poison=on,must-tell-host=on"
"""Every feature that a case may need."""

START_SECONDS: Final = 20.0
CAUGHT: Final = (Verdict.FAIL, Verdict.FINDING)


class Trying(NamedTuple):
    """A fault, what the cases that have to catch it said, and what the daemon said of an error of its own."""

    fault: Fault
    results: list[Result]
    crash: str = ""

    @property
    def is_caught(self) -> bool:
        """Whether each of the cases noticed. A fault whose code does not run shows nothing, whatever the cases say."""
        return (
            not self.crash
            and len(self.results) == len(self.fault.caught_by)
            and all(one.verdict in CAUGHT for one in self.results)
        )


def run(arguments: argparse.Namespace) -> int:
    """Try the faults, list them, or serve one. Return the exit status: 1 if one was not caught."""
    if arguments.serve:
        return _serve(arguments.serve, arguments.socket_path)
    known = [*ALL_FAULTS, *FENCE_FAULTS]
    for name in arguments.faults:
        if name not in known:
            raise UsageError(f"no fault is called {name!r}{nearest([name], known)} (see --list)")
    names = arguments.faults or known
    devices = [ALL_FAULTS[name] for name in names if name in ALL_FAULTS]
    fences = [FENCE_FAULTS[name] for name in names if name in FENCE_FAULTS]
    if arguments.list:
        for fault in devices:
            print(f"{fault.name}\n    {fault.says}\n    [{', '.join(fault.caught_by)}]")
        for fence in fences:
            print(f"{fence.name}\n    {fence.says}\n    [the wake-up model]")
        return 0
    missed = [trying.fault.name for trying in try_faults(devices) if not trying.is_caught]
    for fence in fences:
        result = try_fence(fence)
        print(
            f"{'caught' if result.verdict in CAUGHT else 'MISSED'}  {fence.name}\n        {_line(result)}", flush=True
        )
        missed += [] if result.verdict in CAUGHT else [fence.name]
    print(f"{len(names) - len(missed)} of {len(names)} faults caught")
    if missed:
        raise BalloonError(f"not caught: {', '.join(missed)}")
    return 0


def _serve(name: str, socket_path: Path | None) -> int:
    if name not in ALL_FAULTS:
        raise UsageError(f"no fault of a device is called {name!r}{nearest([name], ALL_FAULTS)} (see --list)")
    if socket_path is None:
        raise UsageError("--serve needs --socket-path")
    try:
        ListeningSocket(socket_path, "--socket-path").close()
    except BalloonError as error:
        raise UsageError(str(error)) from error
    argv = serving(name, socket_path)
    os.execve(argv[0], argv, module_environment())


def _line(result: Result) -> str:
    return f"{result.verdict.value} {result.case}: {result.reason}"


def try_faults(chosen: list[Fault]) -> Iterator[Trying]:
    """Try each fault, two at a time, and yield what came of it; a line is printed for each."""
    with ThreadPoolExecutor(2) as pool:
        for trying in pool.map(try_fault, chosen):
            print(f"{'caught' if trying.is_caught else 'MISSED'}  {trying.fault.name}", flush=True)
            for one in trying.results:
                print(f"        {_line(one)}", flush=True)
            if trying.crash:
                print(f"        the fault itself fails: {trying.crash}", flush=True)
            yield trying


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
                [*serving(fault.name, path), "--control", str(control_of(path))],
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


def crash_of(said: str) -> str:
    """Return the last line of a traceback in what the daemon ``said``, empty without one."""
    _, begin, after = said.partition("Traceback (most recent call last):")
    return next((line for line in after.splitlines() if line and not line[0].isspace()), "unknown") if begin else ""


def _results(fault: Fault, path: Path, process: "subprocess.Popen[bytes]") -> list[Result]:
    def is_there() -> bool:
        with contextlib.suppress(TargetError):
            VhostUserDevice(path)
            return True
        return process.poll() is not None

    begin = time.monotonic()
    if not becomes_true(is_there, START_SECONDS) or process.poll() is not None:
        raise BalloonError(f"the daemon with the fault {fault.name} did not start ({time.monotonic() - begin:.1f} s)")
    of_device, generic = cases_of(fault)
    device = VhostUserDevice(path, qmp=control_of(path))
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


def control_of(path: Path) -> Path:
    """Return the path of the control socket of the daemon at ``path``."""
    return path.with_suffix(".control")
