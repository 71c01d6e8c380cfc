"""``balloon-check device``: judge a balloon device."""

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from protocol.errors import UsageError
from protocol.process.command_line import option_type, path_option
from scripts.check.clauses.clause import Bound
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.trial import Trial
from scripts.check.judge import add_report_options, judge, list_cases
from scripts.check.machine.machine import Device
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.qtest.qtest_device import QtestDevice

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES = """examples:
  balloon-check device --socket-path /tmp/balloon.sock
  balloon-check device --socket-path /tmp/balloon.sock --quick --json result.json
  balloon-check device --socket-path /tmp/balloon.sock 'report-*' S-17
  balloon-check device --qemu
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    path = option_type(path_option)
    parser.add_argument("--socket-path", metavar="PATH", type=path, help="the socket of a vhost-user back-end")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        nargs="?",
        const="qemu-system-x86_64",
        help="the balloon in QEMU itself, which is started for it (default: %(const)s)",
    )
    parser.add_argument("--ring", choices=("split", "packed"), help="only cases of this ring format (default: both)")
    add_report_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge the device. Return the exit status."""
    chosen = DEVICE_CASES.chosen(arguments.cases, quick=arguments.quick)
    if arguments.ring is not None:
        other = "/packed" if arguments.ring == "split" else "/split"
        chosen = [case for case in chosen if not case.name.endswith(other)]
    if not chosen:
        raise UsageError("no case is left")
    if arguments.list:
        return list_cases(DEVICE_CASES, [case.name for case in chosen], quick=False)
    with open_device(arguments) as device:
        return judge(arguments, chosen, lambda: Trial(device), device.name, [Bound.DEVICE])


@contextmanager
def open_device(arguments: argparse.Namespace) -> Iterator[Device]:
    """Yield the device that the options name.

    Raises:
        UsageError: none or two are named.
        TargetError: it cannot be reached.
    """
    if (arguments.socket_path is None) == (arguments.qemu is None):
        raise UsageError("name one target: --socket-path or --qemu")
    if arguments.socket_path is not None:
        yield VhostUserDevice(arguments.socket_path)
        return
    with closing(QtestDevice(arguments.qemu)) as device:
        yield device
