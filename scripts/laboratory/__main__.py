"""The command line of the laboratory: runs experiments in virtual time, and compares them with published figures.

The results are tables, data and pictures. ``walk-through`` prints what happens to one free block.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TextIO

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import Parser, run_command
from scripts.json_output import open_json
from scripts.laboratory import boundary_cost, linux_run, pace, page_fault, pictures, sweep, taking_turns, walk_through
from scripts.laboratory.experiment import Experiment, Outcome
from scripts.scenario import command as scenario_run
from scripts.scenario.compare import command as scenario_compare
from scripts.scenario.export import command as scenario_export
from scripts.scenario.report import command as scenario_report

PROGRAM: Final = "balloon-lab"
EXPERIMENTS: Final = (boundary_cost.EXPERIMENT, page_fault.EXPERIMENT, sweep.EXPERIMENT, pace.EXPERIMENT)
REAL: Final = (linux_run.EXPERIMENT, taking_turns.EXPERIMENT)
"""Experiments that take real processes and real time. They run only if they are named."""

WALK_THROUGH: Final = "walk-through"

_EPILOG: Final = """\
commands of their own:
  scripts/lab run --help                       virtual machines that share a host's memory, as a scenario file says
  scripts/lab compare --help                   policies and reporters side by side, over many seeds
  scripts/lab report --help                    a run's results as one HTML file
  scripts/lab export --help                    a run's results as CSV, Parquet, JSON, or a trace for Perfetto

example:
  scripts/lab                                  all experiments, in about five minutes; data and pictures in build/lab
  scripts/lab pace boundary-cost --output /tmp/lab
  scripts/lab sweep --quick --json -           a short run, with its data as JSON on standard output
  scripts/lab pace --format svg --format pdf   pictures for a page and for paper
  scripts/lab walk-through                     one free block: notify, boundary, report, acknowledge, drain

  scripts/lab timeline                         one real Linux guest for about 20 seconds
  scripts/lab taking-turns                     two guests on a host with memory for one, about 45 seconds

All experiments but the timeline and taking-turns run in virtual time, without a guest or a daemon: their results are
the same on every run and every system. The timeline boots User Mode Linux, which it fetches like balloon-linux does.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Simulates guests that report free pages, and compares costs and savings with published figures.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "names",
        metavar="EXPERIMENT",
        nargs="*",
        help=f"an experiment, for example pace (default: all in virtual time, see --list), or {WALK_THROUGH}",
    )
    parser.add_argument("--list", action="store_true", help="list the experiments and exit")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("build/lab"),
        help="write data (CSV) and pictures into DIR (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=pictures.FORMATS,
        help="of the pictures (repeatable, default: png)",
    )
    parser.add_argument("--json", metavar="PATH", help="also write all data as JSON to PATH, - for standard output")
    parser.add_argument("--quick", action="store_true", help="compute very little: it shows that everything runs")
    return parser


class _Command(Protocol):
    """A module that is a command of its own: ``balloon-lab NAME``."""

    NAME: str
    DESCRIPTION: str
    EPILOG: str

    def add_to(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, arguments: argparse.Namespace, /) -> int: ...


COMMANDS: Final[Mapping[str, _Command]] = {
    command.NAME: command for command in (scenario_run, scenario_compare, scenario_report, scenario_export)
}


def make_command_parser(command: _Command) -> argparse.ArgumentParser:
    """Return the parser of a command, such as ``balloon-lab run``."""
    parser = Parser(prog=f"{PROGRAM} {command.NAME}", description=command.DESCRIPTION, epilog=command.EPILOG)
    command.add_to(parser)
    return parser


def choose(names: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the experiments with these names in their usual order; without names, all that run in virtual time.

    Raises:
        UsageError: a name is unknown.
    """
    known = [experiment.name for experiment in (*EXPERIMENTS, *REAL)]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown experiment {name!r}; known are {', '.join(known)} and {WALK_THROUGH}")
    if not names:
        return EXPERIMENTS
    return tuple(experiment for experiment in (*EXPERIMENTS, *REAL) if experiment.name in names)


def _prepare_output(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BalloonError(f"--output {directory}: {error.strerror}") from error


def _progress(name: str, what: str) -> None:
    print(f"{name}: {what}", file=sys.stderr, flush=True)


def _run_one(experiment: Experiment, arguments: argparse.Namespace, out: TextIO) -> Outcome:
    outcome = experiment.run(arguments.quick, lambda what: _progress(experiment.name, what))
    print(f"\n== {experiment.name}: {experiment.title}", file=out)
    for table in outcome.tables:
        print(f"\n{table}", file=out)
    for note in outcome.notes:
        print(f"  * {note}", file=out)
    data = arguments.output / f"{experiment.name}.csv"
    try:
        pictures.save_rows(data, outcome.rows)
        written = [data]
        for name in dict.fromkeys(arguments.formats or pictures.FORMATS[:1]) if pictures.can_draw() else ():
            written.append(data.with_suffix(f".{name}"))
            pictures.save_picture(written[-1], experiment, outcome.rows)
    except OSError as error:
        raise BalloonError(f"--output {arguments.output}: {error.strerror or error}") from error
    print(f"  written: {', '.join(map(str, written))}", file=out, flush=True)
    return outcome


def _run(arguments: argparse.Namespace) -> int:
    if arguments.names == [WALK_THROUGH]:
        print(walk_through.text())
        return 0
    experiments = choose(arguments.names)
    if arguments.list:
        experiments = experiments if arguments.names else (*EXPERIMENTS, *REAL)
        width = max(len(experiment.name) for experiment in experiments)
        for experiment in experiments:
            print(f"{experiment.name:<{width}}  {experiment.title}")
        return 0
    out = sys.stderr if arguments.json == "-" else sys.stdout
    with open_json(arguments.json) as json_stream:
        _prepare_output(arguments.output)
        outcomes = {experiment.name: _run_one(experiment, arguments, out) for experiment in experiments}
        if not pictures.can_draw():
            print(f"\n{pictures.NO_PICTURES}", file=out)
        if json_stream is not None:
            data = {name: {"notes": outcome.notes, "rows": outcome.rows} for name, outcome in outcomes.items()}
            print(json.dumps(data, indent=2), file=json_stream, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the laboratory; return the exit status: 0 if all was computed, 1 for a failure, 2 for a usage error.

    The first argument may be a command of :data:`COMMANDS`; otherwise the arguments name experiments.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = COMMANDS.get(words[0]) if words else None
    if command is not None:
        parser = make_command_parser(command)
        command_arguments = parser.parse_args(words[1:])
        return run_command(parser.prog, partial(command.run, command_arguments))
    arguments = make_parser().parse_args(words)
    return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
