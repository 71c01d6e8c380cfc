"""``balloon-check``: judge balloon devices, vhost-user back-ends and balloon drivers, clause by clause."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from protocol.process.command_line import Parser, run_command
from scripts.check.broken import options as broken
from scripts.check.device import options as device
from scripts.check.driver import options as driver
from scripts.check.faults import options as faults
from scripts.check.fuzzing import options as fuzzing
from scripts.check.hostile import options as hostile
from scripts.check.ownership import options as ownership
from scripts.check.personalities import options as personalities
from scripts.check.recording import options as recording
from scripts.check.verdict import NOT_JUDGED, TargetError
from scripts.stop_signals import signals_as_exceptions

PROGRAM: Final = "balloon-check"


class Command(NamedTuple):
    """A sub-command: its name, what it does, its examples, its options, and how it runs."""

    name: str
    does: str
    examples: str
    add_to: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


# What a command runs is imported when it runs: `--help` works without the packages that it needs.


def _run_device(arguments: argparse.Namespace) -> int:
    from scripts.check.device.command import run

    return run(arguments)


def _run_driver(arguments: argparse.Namespace) -> int:
    from scripts.check.driver.command import run

    return run(arguments)


def _run_broken(arguments: argparse.Namespace) -> int:
    from scripts.check.broken.command import run

    return run(arguments)


def _run_personalities(arguments: argparse.Namespace) -> int:
    from scripts.check.personalities.command import run

    return run(arguments)


def _run_explain(arguments: argparse.Namespace) -> int:
    from scripts.check.recording.command import run

    return run(arguments)


def _run_fuzz(arguments: argparse.Namespace) -> int:
    from scripts.check.fuzzing.command import run

    return run(arguments)


def _run_hostile(arguments: argparse.Namespace) -> int:
    from scripts.check.hostile.command import run

    return run(arguments)


def _run_ownership(arguments: argparse.Namespace) -> int:
    from scripts.check.ownership.command import run

    return run(arguments)


def _run_proxy(arguments: argparse.Namespace) -> int:
    from scripts.check.faults.command import run

    return run(arguments)


COMMANDS: Final = (
    Command("device", "judge a balloon device", device.EXAMPLES, device.add_to, _run_device),
    Command("driver", "be a device and judge the driver that attaches", driver.EXAMPLES, driver.add_to, _run_driver),
    Command("proxy", "pass messages with the faults of a script", faults.EXAMPLES, faults.add_to, _run_proxy),
    Command("broken", "try the cases on devices with a fault each", broken.EXAMPLES, broken.add_to, _run_broken),
    Command(
        "personalities",
        "show what balloon devices do differently",
        personalities.EXAMPLES,
        personalities.add_to,
        _run_personalities,
    ),
    Command(
        "ownership",
        "interleave both halves of the balloon by a seed and watch who owns each page",
        ownership.EXAMPLES,
        ownership.add_to,
        _run_ownership,
    ),
    Command("explain", "explain a recorded session", recording.EXAMPLES, recording.add_to, _run_explain),
    Command("hostile", "play hostile sessions beside a good machine", hostile.EXAMPLES, hostile.add_to, _run_hostile),
    Command("fuzz", "feed mutated input to what reads a peer's bytes", fuzzing.EXAMPLES, fuzzing.add_to, _run_fuzz),
)


def make_parser() -> Parser:
    """Return the parser of the whole program."""
    parser = Parser(
        prog=PROGRAM,
        description=(
            "Judges balloon devices, vhost-user back-ends and balloon drivers, clause by clause of the specifications."
        ),
        epilog=(
            "exit status: 0 without a FAIL, 1 with one, 2 for a wrong option, 3 when the target could not be judged\n\n"
            "example:\n  balloon-check device --socket-path /tmp/balloon.sock"
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for one in COMMANDS:
        description = one.does[0].upper() + one.does[1:] + "."
        below = commands.add_parser(one.name, help=one.does, prog=PROGRAM, description=description, epilog=one.examples)
        below.prog = f"{parser.prog} {one.name}"
        one.add_to(below)
        below.set_defaults(run=one.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""

    def run() -> int:
        arguments = make_parser().parse_args(argv)
        status: int = arguments.run(arguments)
        return status

    with signals_as_exceptions():
        return run_command(PROGRAM, run, statuses={TargetError: NOT_JUDGED})


if __name__ == "__main__":
    sys.exit(main())
