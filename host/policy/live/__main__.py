"""``balloon-policy``: the command line."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from protocol.errors import UsageError
from protocol.process.command_line import Parser, option_type, path_option, run_command
from protocol.units import parse_size

PROGRAM: Final = "balloon-policy"

_EPILOG: Final = """\
NAME is a policy of --list, or module:Class of your own, found on PYTHONPATH. Each decision that does something is one
line on standard output, and with --events every one is a JSON object with all that it was made from. At the end
balloons are emptied.

exit status: 0 after SIGTERM, 130 after Ctrl-C, 1 for a failure, 2 for a usage error

examples:
  vhost-user-balloon --socket-path /tmp/balloon.sock --control /tmp/balloon.ctl
  balloon-policy steady --control /tmp/balloon.ctl --budget 8G                    (in a second terminal)
  balloon-policy mom --control /tmp/a.ctl /tmp/b.ctl --set pressure_threshold=0.3 --dry-run --once
  balloon-policy --list mom
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Decides how much memory the virtual machines of daemons have, by a policy: sets balloons and "
        "reclaims through their control sockets.",
        epilog=_EPILOG,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the policy")
    parser.add_argument(
        "--control",
        metavar="PATH",
        nargs="+",
        action="extend",
        type=option_type(path_option),
        help="control sockets of the daemons, as given to their --control",
    )
    parser.add_argument(
        "--set",
        metavar="PARAM=VALUE",
        action="append",
        default=[],
        help="a parameter of the policy (--list NAME names them); several times for several",
    )
    parser.add_argument("--interval", metavar="SECONDS", type=float, help="time between two decisions (policy's own)")
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        type=option_type(parse_size),
        help="memory for all virtual machines together (default: the limit of this process's cgroup, or MemTotal)",
    )
    parser.add_argument(
        "--cgroup",
        metavar="DIRECTORY",
        type=option_type(path_option),
        help="the virtual machines are in this memory cgroup: budget, use and pressure are its own",
    )
    parser.add_argument(
        "--events", metavar="PATH", help="append one JSON object a decision to PATH, - for standard output"
    )
    parser.add_argument("--once", action="store_true", help="decide once, act, and end; balloons stay")
    parser.add_argument("--dry-run", action="store_true", help="decide, but do not act")
    parser.add_argument("--leave", action="store_true", help="leave the balloons as they are at the end")
    parser.add_argument(
        "--list", action="store_true", help="print the policies and end; with NAME, that policy and its parameters"
    )
    return parser


def _list(name: str | None) -> int:
    from host.policy.registry import describe_policies

    print("\n".join(describe_policies(name)))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    # Late: --help is quick.
    import asyncio
    import contextlib

    from host.policy.live.host_memory import find_host_memory
    from host.policy.live.policy_process import policy_for_run
    from host.policy.live.run import RunOptions, run
    from host.policy.parameters import INTERVAL_LEAST, INTERVAL_MOST, parse_settings
    from protocol.process.events import open_event_log

    if arguments.name is None:
        raise UsageError("the NAME of a policy is needed (--list names them)")
    if not arguments.control:
        raise UsageError("--control PATH of at least one daemon is needed")
    if len(set(arguments.control)) != len(arguments.control):
        raise UsageError("--control: a path comes twice")
    policy = policy_for_run(arguments.name, parse_settings(arguments.set))
    interval = policy.interval if arguments.interval is None else arguments.interval
    if not INTERVAL_LEAST <= interval <= INTERVAL_MOST:
        raise UsageError(f"--interval: {interval:g} is not from {INTERVAL_LEAST:g} to {INTERVAL_MOST:g} seconds")
    if arguments.budget == 0:
        raise UsageError("--budget: more than 0 bytes are needed")
    memory = find_host_memory(arguments.budget, arguments.cgroup)
    with contextlib.closing(open_event_log(arguments.events, time.monotonic)) as events:
        options = RunOptions(
            policy=policy,
            controls=arguments.control,
            memory=memory,
            interval=interval,
            print_line=_ignore if events.is_standard_output else _print_line,
            say=_say,
            events=events,
            once=arguments.once,
            dry_run=arguments.dry_run,
            leave=arguments.leave,
        )
        return asyncio.run(run(options))


def _ignore(_line: str) -> None:
    pass


def _print_line(line: str) -> None:
    print(line, flush=True)


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    arguments = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _list(arguments.name) if arguments.list else _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
