"""``balloon-bench``, ``scripts/bench``: measures the figures that the project promises, each against its bar."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from protocol.process.command_line import Parser, run_command

PROGRAM: Final = "balloon-bench"
_EPILOG: Final = """\
example:
  scripts/bench                                       all figures, in about eight minutes
  scripts/bench discard-4m round-trip --json -        two figures, as JSON on standard output

It needs about 2 GiB of free memory. It measures real processes: run it on an idle system.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Measures the figures that vhost-user-balloon promises, and compares each with the value that it "
        "must reach.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="a figure to measure, for example discard-4m (default: all, see --list)",
    )
    parser.add_argument("--list", action="store_true", help="list the figures and what they promise, and exit")
    parser.add_argument("--json", metavar="PATH", help="also write the results as JSON to PATH, - for standard output")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="measure very little: it shows that everything runs, but the values have no meaning",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return the exit status: 0 if all was measured, whether or not each bar is met, 1 for a
    failure, 2 for a usage error."""
    arguments = make_parser().parse_args(argv)

    def run() -> int:
        from scripts.benchmarks.run import run_benchmarks  # late: --help needs no library

        return run_benchmarks(arguments.names, listing=arguments.list, quick=arguments.quick, json_path=arguments.json)

    return run_command(PROGRAM, run)


if __name__ == "__main__":
    sys.exit(main())
