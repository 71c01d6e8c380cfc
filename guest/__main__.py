"""``balloon-guest``: the command line of the emulated guest."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from protocol.command_line import Parser, option_type, path_option, run_command
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, parse_size

PROGRAM: Final = "balloon-guest"
MEMORY_MIN: Final = 16 << 20
MEMORY_MAX: Final = 16 << 40
"""Sizes of machine that make sense, in bytes."""

_EPILOG: Final = """\
example:
  vhost-user-balloon --socket-path /tmp/balloon.sock                              (in a first terminal)
  balloon-guest --socket-path /tmp/balloon.sock --memory 1G --workload memhog:size=800M,hold=2 --events -

workloads (repeatable; several run at the same time):
  idle[:seconds=0]                                       do nothing
  memhog[:size=0,order=9,hold=1,rest=0,rate=0,repeat=1]  fill memory, hold it, free it (size 0: 90 % of what is free)
  churn[:size=0,seconds=10,lifetime=1,tick=0.01]         random sizes and lifetimes around size (0: half of the free)

SIGUSR1 prints the guest's buddyinfo.
"""


def _memory(text: str) -> int:
    size = parse_size(text)
    if size % PAGE_SIZE:
        raise UsageError(f"{text!r} is not a whole number of {PAGE_SIZE}-byte pages")
    if not MEMORY_MIN <= size <= MEMORY_MAX:
        raise UsageError(f"{text!r} is not from {MEMORY_MIN >> 20}M to {MEMORY_MAX >> 40}T")
    return size


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is not a number of seconds")
    return seconds


def _add_reporting(parser: argparse.ArgumentParser) -> None:
    reporting = parser.add_argument_group("free page reporting")
    reporting.add_argument(
        "--reporter",
        choices=("boundary", "rotation", "off"),
        default="boundary",
        help="boundary: the 2019 design with its reported boundary (default); rotation: as merged in Linux; off: none",
    )
    reporting.add_argument("--reporting-order", metavar="N", type=int, help="least order reported (default: 9)")
    reporting.add_argument(
        "--reporting-delay", metavar="S", type=option_type(_seconds), help="seconds (boundary: 0.1, rotation: 2)"
    )
    reporting.add_argument(
        "--reporting-capacity", metavar="N", type=int, help="blocks in one report (boundary: 16, rotation: 32)"
    )
    reporting.add_argument(
        "--high-water-mark", metavar="N", type=int, help="unreported blocks that start a pass (boundary only: 32)"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from guest.workload import parse_workload

    parser = Parser(
        prog=PROGRAM,
        description="An emulated virtual machine with a buddy allocator that reports its free pages to a vhost-user "
        "balloon back-end.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), required=True, help="where the back-end listens"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", type=option_type(_memory), default=GIB, help="guest memory (default: 1G)"
    )
    _add_reporting(parser)
    work = parser.add_argument_group("what the guest does")
    work.add_argument(
        "--workload",
        metavar="NAME[:key=value,...]",
        type=option_type(parse_workload),
        action="append",
        default=[],
        help="see below (default: idle)",
    )
    work.add_argument("--seed", metavar="N", type=int, default=0, help="seed of random workloads (default: 0)")
    work.add_argument("--duration", metavar="S", type=option_type(_seconds), help="stop the workloads after S seconds")
    work.add_argument("--hold", action="store_true", help="stay attached when the workloads are done")
    watch = parser.add_argument_group("watching")
    watch.add_argument("--events", metavar="PATH", help="append one JSON object a line to PATH, - for standard output")
    watch.add_argument("--print", choices=("buddyinfo",), dest="view", help="print this view of memory at the end")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from guest.vmm import VirtualMachine, VmmOptions
    from guest.workload import Idle
    from protocol.events import open_event_log
    from protocol.virtio_ring import refuse_big_endian

    refuse_big_endian()
    constants = (arguments.reporting_order, arguments.reporting_delay, arguments.reporting_capacity)
    if arguments.reporter == "off" and any(value is not None for value in (*constants, arguments.high_water_mark)):
        raise UsageError("--reporter off has no constants")
    options = VmmOptions(
        socket_path=arguments.socket_path,
        memory=arguments.memory,
        reporter=arguments.reporter,
        reporting_order=arguments.reporting_order,
        reporting_delay=arguments.reporting_delay,
        reporting_capacity=arguments.reporting_capacity,
        high_water_mark=arguments.high_water_mark,
        workloads=tuple(arguments.workload) or (Idle(),),
        seed=arguments.seed,
        duration=arguments.duration,
        hold=arguments.hold,
        print_buddyinfo=arguments.view == "buddyinfo",
    )
    events = open_event_log(arguments.events, time.monotonic)

    async def power_on() -> int:
        return await VirtualMachine(options, events).run()

    try:
        return asyncio.run(power_on())
    finally:
        events.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the guest; return the exit status: 0, 1 for a failure or a corrupted page, 2 for a usage error."""
    arguments = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
