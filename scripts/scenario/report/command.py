"""``balloon-lab report``: makes one HTML file of a run's results."""

import argparse
from pathlib import Path
from typing import Final

from protocol.process.command_line import option_type, path_option

NAME: Final = "report"

DESCRIPTION: Final = (
    "Makes one HTML file, which needs no network, of the results that balloon-lab run --out has written."
)

EPILOG: Final = """\
The file has one time axis for the host and all machines: memory, what holds free memory, decisions and events, and a
picture of each machine's physical memory beside what the host backs of it. The arrow keys move through time.

exit status: 0 if the file was written, 1 for results that are broken or of another version, 2 for a usage error

examples:
  balloon-lab run staggered-builds --virtual --out build/run
  balloon-lab report build/run
  balloon-lab report build/run --out run.html --compare build/compare
  balloon-lab report build/run --compare build/other-run
"""

FILE: Final = "report.html"


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("directory", metavar="DIR", type=option_type(path_option), help="the results of a run")
    parser.add_argument(
        "--out", metavar="FILE", type=option_type(path_option), help=f"the file to write (default: DIR/{FILE})"
    )
    parser.add_argument(
        "--compare",
        metavar="DIR2",
        type=option_type(path_option),
        action="append",
        default=[],
        help="a table beside it: the results of balloon-lab compare, or those of another run (repeatable); "
        "what played another scenario is marked",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises:
        UsageError: there are no results in the directory.
        BalloonError: results cannot be read, or the file cannot be written.
    """
    from protocol.units import format_size
    from scripts.report_file import report_file
    from scripts.scenario.report.html_page import html_page
    from scripts.scenario.report.page_data import page_data
    from scripts.scenario.report.run_files import RunFiles

    directory: Path = arguments.directory
    out: Path = arguments.out or directory / FILE
    page = html_page(page_data(RunFiles(directory), arguments.compare))
    with report_file(out, "--out") as stream:
        stream.write(page)
    print(f"written: {out} ({format_size(len(page.encode()))})")
    return 0
