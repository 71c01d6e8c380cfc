"""``balloon-check driver``: be a device and judge the driver that attaches."""

import argparse
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from protocol.errors import UsageError
from protocol.process.command_line import option_type, path_option
from scripts.check.broken.all_faults import ALL_FAULTS
from scripts.check.clauses.clause import Bound
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.scenario import observe
from scripts.check.judge import add_report_options, judge, list_cases
from scripts.check.names import nearest

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES: Final = """examples:
  balloon-check driver --socket-path /tmp/check.sock
  balloon-check driver --socket-path /tmp/check.sock --seconds 20 \\
      --start 'balloon-linux --socket-path /tmp/check.sock --memory 256M -- sleep 60'
  balloon-check driver --socket-path /tmp/check.sock --misbehave every-second-interrupt
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="where the device listens for the driver"
    )
    parser.add_argument("--start", metavar="COMMAND", help="a command that brings the driver, ended afterwards")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=20.0, help="how long the driver is watched (default: %(default)g)"
    )
    parser.add_argument(
        "--attach-seconds",
        metavar="S",
        type=float,
        default=60.0,
        help="how long a driver is waited for (default: %(default)g)",
    )
    parser.add_argument(
        "--features",
        metavar="NAME=on|off,...",
        help="what the device offers, in the daemon's words (default: all but page-poison, indirect and event-idx on)",
    )
    parser.add_argument(
        "--misbehave", metavar="FAULT", help="be a device with this fault, to see what the driver does (see broken)"
    )
    add_report_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge the driver. Return the exit status."""
    chosen = DRIVER_CASES.chosen(arguments.cases, quick=False)
    if arguments.list:
        return list_cases(DRIVER_CASES, [case.name for case in chosen], quick=False)
    if arguments.socket_path is None:
        raise UsageError("--socket-path is needed")
    fault = arguments.misbehave
    if fault is not None and fault not in ALL_FAULTS:
        raise UsageError(f"no fault is called {fault!r}{nearest([fault], ALL_FAULTS)} (see broken --list)")
    if not 0 < arguments.seconds < 86400 or not 0 < arguments.attach_seconds < 86400:
        raise UsageError("seconds are above 0 and below a day")
    seen = observe(
        arguments.socket_path,
        lambda text: print(text, file=sys.stderr, flush=True),
        fault=fault,
        attach_seconds=arguments.attach_seconds,
        seconds=arguments.seconds,
        start=arguments.start,
        features=arguments.features,
    )
    name = f"the driver at {arguments.socket_path}"
    return judge(arguments, chosen, lambda: nullcontext(seen), name, [Bound.DRIVER])
