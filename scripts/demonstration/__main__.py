"""The command line of the demonstration."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import Parser, option_type, run_command
from protocol.units import GIB, MIB, format_size, parse_size
from scripts.stop_signals import signals_as_exceptions

PROGRAM: Final = "balloon-demo"
LEAST_MEMORY: Final = 256 * MIB
MOST_MEMORY: Final = 64 * GIB
"""With less memory two machines fit the budget, a part of which is fixed. With more it takes too long."""

_EPILOG: Final = """\
There are two rounds of about ten seconds. In each, VM A fills three quarters of its memory, frees it and stays idle;
then VM B needs the same amount. In the first round free page reporting has returned A's memory to the host by then, and
B gets it. In the second round A does not report, and B runs out of memory. The host's memory is limited by a memory
cgroup if you may create one. Otherwise the script adds up what the VMs use, and stops B itself. The rounds are the
scenarios taking-turns and taking-turns-without-reporting of balloon-lab run.

exit status: 0 if both rounds ended as described, 1 if not, 2 for a usage error, 130 after Ctrl-C

examples:
  scripts/demo
  scripts/demo --real                         the same with an unmodified Linux kernel as VM A
  scripts/demo --plain --json result.json     output for a log file, and the summary as JSON
"""


def _memory(text: str) -> int:
    size = parse_size(text)
    if not LEAST_MEMORY <= size <= MOST_MEMORY or size % MIB:
        raise UsageError(f"{text!r} is not from {LEAST_MEMORY >> 20}M to {MOST_MEMORY >> 30}G, in whole MiB")
    return size


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Runs two virtual machines that together need more memory than the host has: first with free page "
        "reporting, then without.",
        epilog=_EPILOG,
    )
    parser.add_argument("--real", action="store_true", help="VM A is a real Linux kernel (User Mode Linux)")
    parser.add_argument("--plain", action="store_true", help="print a plain table also on a terminal")
    parser.add_argument("--json", metavar="PATH", help="write the summary as JSON to PATH, - for standard output")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        type=option_type(_memory),
        default=GIB,
        help="memory of each machine, such as 512M (default: 1G)",
    )
    parser.add_argument(
        "--budget",
        choices=("auto", "cgroup", "accounting"),
        default="auto",
        help="limit the host's memory by a memory cgroup or by the script's own accounting (default: auto, a cgroup "
        "if permitted)",
    )
    return parser


def _fetch_kernel() -> None:
    # Before the view takes the terminal: the first call downloads two packages and reports that.
    from scripts.child_processes import module_environment, python_module

    command = python_module("guest.linux", "--fetch-only")
    if subprocess.run(command, stdout=subprocess.DEVNULL, env=module_environment(), check=False).returncode != 0:
        raise BalloonError("--real: no Linux kernel is available here; the demonstration runs without --real too")


def _person(arguments: argparse.Namespace) -> TextIO:
    # The stream for people: standard error if the JSON goes to standard output. A stream that was closed before Python
    # started is None, which its type does not say.
    output: TextIO | None = sys.stdout
    errors: TextIO | None = sys.stderr
    if output is None:
        raise BalloonError("standard output is closed")
    if arguments.json != "-":
        return output
    return open(os.devnull, "w", encoding="utf-8") if errors is None else errors


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BalloonError(f"--json {path}: {error.strerror}") from error


def _run(arguments: argparse.Namespace) -> int:
    from scripts.demonstration.scenario import run_round
    from scripts.demonstration.settings import Settings
    from scripts.demonstration.summary import report_dict, summary_lines
    from scripts.demonstration.terminal import choose_display, print_lines
    from scripts.demonstration.view import WIDTH, text_line
    from scripts.scenario.real.budget import memory_for_us
    from scripts.scenario.real.leftovers import directory_parent

    settings = Settings(memory_bytes=arguments.memory, real=arguments.real, budget=arguments.budget)
    person = _person(arguments)
    available = memory_for_us()
    if available < settings.budget_bytes:
        raise BalloonError(
            f"this needs {format_size(settings.budget_bytes)} of free memory, {format_size(available)} are available:"
            " try a smaller --memory"
        )
    if arguments.json not in (None, "-"):
        # A wrong path is an error now, not after half a minute.
        try:
            Path(arguments.json).touch()
        except OSError as error:
            raise BalloonError(f"--json {arguments.json}: {error.strerror}") from error
    directory_parent()  # without a suitable directory this is an error, before the view takes the terminal
    if settings.real:
        _fetch_kernel()
    with choose_display(person, plain=arguments.plain) as display:
        results = [run_round(settings, display, reporting=reporting) for reporting in (True, False)]
    width = min(WIDTH, shutil.get_terminal_size().columns - 1) if person.isatty() else WIDTH
    print_lines(person, [text_line(""), *summary_lines(results, width)])
    if arguments.json is not None:
        text = json.dumps(report_dict(results), indent=2)
        if arguments.json == "-":
            print(text, flush=True)
        else:
            _write(Path(arguments.json), text + "\n")
    problems = [result.problem for result in results if result.problem is not None]
    if problems:
        raise BalloonError(f"not as expected: {'; '.join(problems)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit status: 0 if it showed what it should, 1 if not, 2 for a usage error."""
    arguments = make_parser().parse_args(argv)
    with signals_as_exceptions() as stop:
        try:
            status = run_command(PROGRAM, lambda: _run(arguments))
        except SystemExit:
            status = 1
    return 128 + stop.number if stop.number else status


if __name__ == "__main__":
    sys.exit(main())
