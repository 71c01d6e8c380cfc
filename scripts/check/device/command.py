"""``balloon-check device``: judge a balloon device."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, TypeVar

from protocol.errors import UsageError
from scripts.check.clauses.clause import Bound
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.trial import fresh_trial
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.edges.coverage_lines import coverage_lines
from scripts.check.edges.table import EDGES, PEERS
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.generic.backend import open_backend
from scripts.check.judge import Reports, judge, list_cases
from scripts.check.listing import print_listing
from scripts.check.machine.machine import Device
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.qtest.qtest_device import QtestDevice
from scripts.check.recording.check_recording import CheckRecording, open_record
from scripts.check.suite import Case, Suite
from scripts.check.verdict import TargetError

RECORDED_BY: Final = "balloon-check device"

Target = TypeVar("Target")


def run(arguments: argparse.Namespace) -> int:
    """Judge the device. Return the exit status."""
    if arguments.coverage:
        print_listing(coverage_lines((DEVICE_CASES, GENERIC_CASES, DRIVER_CASES), EDGES, PEERS, CLAUSES, UNSEEN))
        return 0
    if arguments.generic:
        return _run_generic(arguments)
    if arguments.start is not None:
        raise UsageError("--start goes with --generic")
    chosen = DEVICE_CASES.chosen(arguments.cases, quick=arguments.quick)
    if arguments.ring is not None:
        other = "/packed" if arguments.ring == "split" else "/split"
        chosen = [case for case in chosen if not case.name.endswith(other)]
    if not chosen:
        raise UsageError("no case is left")
    if arguments.list:
        return _list(DEVICE_CASES, chosen, arguments, Bound.DEVICE)
    if arguments.qemu is not None and arguments.record is not None:
        raise UsageError("--record goes with --socket-path: QEMU's own balloon is not reached by messages")
    with open_record(arguments.record, RECORDED_BY) as file:
        recording = None if file is None else CheckRecording(file.write)
        with open_device(arguments, recording) as device, Reports(arguments) as reports:
            watched = chosen if recording is None else recording.watched(chosen)
            also = [Bound.BACK_END] if arguments.qemu is None else []  # a part of its rules decides about its device
            return judge(reports, watched, lambda: fresh_trial(device), device.name, [Bound.DEVICE], also)


def _run_generic(arguments: argparse.Namespace) -> int:
    chosen = GENERIC_CASES.chosen(arguments.cases, quick=arguments.quick)
    if arguments.list:
        return _list(GENERIC_CASES, chosen, arguments, Bound.BACK_END)
    if arguments.qemu is not None or arguments.socket_path is None:
        raise UsageError("--generic needs --socket-path")
    with open_record(arguments.record, RECORDED_BY) as file:
        recording = None if file is None else CheckRecording(file.write)
        with (
            open_backend(arguments.socket_path, arguments.start, recording) as backend,
            Reports(arguments) as reports,
        ):
            watched = chosen if recording is None else recording.watched(chosen)
            name = f"the back-end at {arguments.socket_path}"
            return judge(reports, watched, backend.fresh, name, [Bound.BACK_END])


def _list(suite: Suite[Target], cases: Sequence[Case[Target]], arguments: argparse.Namespace, bound: Bound) -> int:
    return list_cases(
        suite, [case.name for case in cases], quick=False, bound=() if arguments.cases or arguments.quick else [bound]
    )


@contextmanager
def open_device(arguments: argparse.Namespace, recording: CheckRecording | None = None) -> Iterator[Device]:
    """Yield the device that the options name; its sessions go to ``recording``.

    Raises:
        UsageError: none or two are named.
        TargetError: it cannot be reached.
    """
    if (arguments.socket_path is None) == (arguments.qemu is None):
        raise UsageError("name one target: --socket-path or --qemu")
    if arguments.socket_path is not None:
        yield VhostUserDevice(arguments.socket_path, qmp=arguments.qmp, recording=recording)
        return
    if "/" not in arguments.qemu and shutil.which(arguments.qemu) is None:
        raise TargetError(f"{arguments.qemu}: no such program (a case's name goes before --qemu)")
    with closing(QtestDevice(arguments.qemu)) as device:
        yield device
