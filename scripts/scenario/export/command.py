"""``balloon-lab export``: writes the results of a run in formats of other programs."""

import argparse
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.process.command_line import option_type, path_option

NAME: Final = "export"

DESCRIPTION: Final = "Writes the results of a run, the directory of balloon-lab run --out, for other programs."

EPILOG: Final = """\
formats:
  csv       samples, ledger, events and decisions, a file each
  parquet   the same four with their types (extra parquet)
  json      run.json: the summary and the four tables
  perfetto  trace.json for ui.perfetto.dev: memory and ledger as counters, phases as slices, decisions and events

examples:
  balloon-lab run taking-turns --virtual --out build/run
  balloon-lab export build/run --to perfetto
  balloon-lab export build/run --to csv --to parquet --out build/tables
"""

FOLDER: Final = "export"
"""Below the results, where files go without ``--out``."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("results", metavar="DIR", type=option_type(path_option), help="what run --out has written")
    parser.add_argument(
        "--to",
        dest="formats",
        action="append",
        required=True,
        choices=("csv", "parquet", "json", "perfetto"),
        help="format (repeatable)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=option_type(path_option), help="write into DIR (default: export in the results)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises:
        UsageError: a format that needs what is not installed.
        BalloonError: the results cannot be read, or a file cannot be written.
    """
    from scripts.scenario.export.files import FORMATS, check_format
    from scripts.scenario.export.run_tables import read_results

    formats = list(dict.fromkeys(arguments.formats))
    for name in formats:
        check_format(name)
    results = read_results(arguments.results)
    out: Path = arguments.out or arguments.results / FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in formats:
            for path in FORMATS[name](results, out):
                print(path)
    except OSError as error:
        raise BalloonError(f"{error.filename or out}: {error.strerror or error}") from error
    return 0
