"""Tries broken drivers: each is our guest with one fault, which the watching device observes and the cases judge."""

import shlex
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from scripts.check.broken.driver_fault import DriverFault
from scripts.check.broken.trying import Trying, crash_of
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.scenario import FEATURES, ScenarioOptions, observe
from scripts.check.run import run_cases
from scripts.child_processes import module_environment, python_module

MEMORY: Final = "128M"
"""The guest's memory: enough for the balloon that the device asks for."""

ATTACH_SECONDS: Final = 20.0
PATIENCE: Final = 1.5
"""Seconds for which a balloon of another size is waited for. Some drivers never tell of it."""


def driving(fault: DriverFault, path: Path) -> list[str]:
    """Return the command that is the driver with ``fault`` at the device of ``path``."""
    options = ["--socket-path", str(path), "--memory", MEMORY]
    return python_module("scripts.check.broken.drive", fault.name, *options)


def try_driver(fault: DriverFault) -> Trying:
    """Watch a guest that has ``fault``, and run the cases that have to catch it.

    Raises:
        BalloonError: the device does not start, or the driver does not come.
    """
    with tempfile.TemporaryDirectory(prefix="balloon-broken-") as scratch:
        path, said = Path(scratch) / "socket", Path(scratch) / "stderr"
        keep = [] if "--workload" in fault.guest else ["--workload", "idle:seconds=60"]
        command = shlex.join([*driving(fault, path), *keep])
        options = ScenarioOptions(
            attach_seconds=ATTACH_SECONDS,
            seconds=fault.seconds,
            start=f"sh -c {shlex.quote(f'exec {command} 2>{shlex.quote(str(said))}')}",
            environment=module_environment(),
            features=_features(fault.features),
            acts=fault.acts,
            patience=PATIENCE,
        )
        seen = observe(path, options, lambda _: None)
        cases = [DRIVER_CASES[name] for name in fault.caught_by]
        results = list(run_cases(cases, lambda: nullcontext(seen)))
        return Trying(fault, results, crash_of(said.read_text(errors="replace")))


def _features(switches: str) -> str:
    return ",".join([FEATURES, *([switches] if switches else [])])
