"""``balloon-check driver``: be a device and judge the driver that attaches."""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace

from protocol.errors import UsageError
from protocol.virtio import FeatureBit
from scripts.check.broken.device_faults.all_faults import ALL_FAULTS
from scripts.check.clauses.clause import Bound
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.misbehaving import under_fault
from scripts.check.driver.observation import Observed
from scripts.check.driver.scenario import FEATURES, ScenarioOptions, observe
from scripts.check.judge import Reports, judge, list_cases
from scripts.check.names import nearest
from scripts.check.recording.check_recording import require_writable
from scripts.check.ring_clauses import blaming_format, of_format
from scripts.check.suite import Case


def case_of_format(case: Case[Observed], *, packed: bool) -> Case[Observed]:
    """Return ``case`` without the clauses of the ring format that was not used."""
    return replace(case, clauses=of_format(case.clauses, packed=packed), run=blaming_format(case.run, packed=packed))


def run(arguments: argparse.Namespace) -> int:
    """Judge the driver. Return the exit status."""
    chosen = DRIVER_CASES.chosen(arguments.cases, quick=False)
    if arguments.list:
        bound = () if arguments.cases else (Bound.DRIVER, Bound.FRONT_END)
        return list_cases(DRIVER_CASES, [case.name for case in chosen], quick=False, bound=bound)
    if arguments.socket_path is None:
        raise UsageError("--socket-path is needed")
    fault = arguments.misbehave
    if fault is not None and fault not in ALL_FAULTS:
        raise UsageError(f"no fault is called {fault!r}{nearest([fault], ALL_FAULTS)} (see broken --list)")
    if not 0 < arguments.seconds < 86400 or not 0 < arguments.attach_seconds < 86400:
        raise UsageError("seconds are above 0 and below a day")
    if arguments.record is not None:
        require_writable(arguments.record)
    options = ScenarioOptions(
        attach_seconds=arguments.attach_seconds,
        seconds=arguments.seconds,
        start=arguments.start,
        features=arguments.features or FEATURES,
        in_band=arguments.in_band,
        fault=fault,
        record=arguments.record,
    )
    with Reports(arguments) as reports:
        seen = observe(arguments.socket_path, options, lambda text: print(text, file=sys.stderr, flush=True))
        chosen = [case_of_format(case, packed=seen.has(FeatureBit.RING_PACKED)) for case in chosen]
        if fault is not None:
            chosen = [under_fault(case, fault) for case in chosen]
        name = f"the driver at {arguments.socket_path}"
        return judge(reports, chosen, lambda: nullcontext(seen), name, [Bound.DRIVER, Bound.FRONT_END])
