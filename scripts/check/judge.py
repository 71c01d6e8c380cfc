"""A run from its options to its exit status: cases chosen, run, and reported in the forms that were asked for."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO, TypeVar

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import errors_of_standard_output, option_type, path_option
from scripts.check.clauses.clause import Bound
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.listing import print_listing
from scripts.check.report.clause_verdicts import judge_clauses
from scripts.check.report.json_report import JsonReport
from scripts.check.report.junit import JunitReport
from scripts.check.report.ktap import KtapReport
from scripts.check.report.reporter import Reporter, Summary
from scripts.check.report.table import TableReport
from scripts.check.run import Open, run_cases
from scripts.check.suite import Case, Suite
from scripts.check.verdict import NOT_JUDGED, Result
from scripts.report_file import report_file

FORMATS: Final = ("table", "ktap", "junit", "json")

Target = TypeVar("Target")


def add_report_options(parser: argparse.ArgumentParser, *, quick: bool) -> None:
    """Add the options that every judging command has: what to run, and how to report it. ``quick`` says that some of
    the cases take little time, and can be chosen."""
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="a case or a clause's id, with * and ? as in a shell (default: all)"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the cases with what each says is right, and the clauses without a case",
    )
    if quick:
        parser.add_argument("--quick", action="store_true", help="only the cases that take little time")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each case that passes, too")
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="what standard output gets (default: %(default)s)"
    )
    for name in FORMATS[1:]:
        parser.add_argument(
            f"--{name}",
            metavar="FILE",
            type=option_type(path_option),
            help=f"write the report as {name} to FILE as well",
        )


def list_cases(suite: Suite[Target], patterns: Sequence[str], *, quick: bool, bound: Sequence[Bound] = ()) -> int:
    """Print the cases that are meant, and after them the clauses that bind one of ``bound`` and have no case, with
    their reasons. Return the exit status."""
    print_listing(_listing(suite.chosen(patterns, quick=quick), frozenset(bound)))
    return 0


def _listing(cases: Sequence[Case[Target]], bound: frozenset[Bound]) -> Iterator[str]:
    for case in cases:
        yield f"{case.name}{' (quick)' if case.quick else ''}"
        yield f"    {case.says}"
        about = [*case.clauses, *(f"edge case {number}" for number in case.edges), *case.peers]
        if about:
            yield f"    [{', '.join(about)}]"
    without = [clause for clause in CLAUSES.values() if clause.id in UNSEEN and clause.bound & bound]
    if without:
        yield "clauses without a case:"
    for clause in without:
        yield f"    {clause.id}: {clause.statement}\n        {UNSEEN[clause.id]}"


class Reports:
    """All reports of a run: what standard output gets, and the files. Leaving the context puts the files in place."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Open the files, before anything is judged.

        Raises:
            UsageError: one cannot be opened.
        """
        self._output = _reporter(arguments.format, sys.stdout, verbose=arguments.verbose)
        self._files: list[_ReportToFile] = []
        with ExitStack() as unwind:
            unwind.push(self)
            for name in FORMATS[1:]:
                path: Path | None = getattr(arguments, name)
                if path is not None:
                    self._files.append(_ReportToFile(path, name))
            unwind.pop_all()

    def tell(self, part: Callable[[Reporter], None]) -> None:
        """Give each report a part."""
        part(self._output)
        for file in self._files:
            file.tell(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.leave(kind, error, trace)
        if error is None and (errors := [str(file.error) for file in self._files if file.error is not None]):
            raise BalloonError("; ".join(errors))


class _ReportToFile:
    # A file that cannot be written is given up, and stays as it was. `error` says why: the other reports go on.

    def __init__(self, path: Path, name: str) -> None:
        self.error: BalloonError | None = None
        self._file = ExitStack()
        try:
            stream = self._file.enter_context(report_file(path, f"--{name}"))
        except BalloonError as error:
            raise UsageError(str(error)) from error
        self._reporter = _reporter(name, stream, verbose=False)

    def tell(self, part: Callable[[Reporter], None]) -> None:
        if self.error is not None:
            return
        try:
            part(self._reporter)
        except BalloonError as error:
            self.error = error
            self._file.__exit__(type(error), error, error.__traceback__)

    def leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.__exit__(kind, error, trace)
        except BalloonError as failed:
            self.error = failed


def judge(
    reports: Reports,
    cases: Sequence[Case[Target]],
    fresh: Open[Target],
    target: str,
    bound: Sequence[Bound],
    also: Sequence[Bound] = (),
) -> int:
    """Run ``cases`` and report them, and the clauses that bind one of ``bound``; of those that bind one of ``also``
    the ones that a case names. Return the exit status: 0, 1 if a case failed, or else 3 if one has a fault of its own.

    Raises:
        TargetError: the target cannot be reached at all.
    """
    reports.tell(lambda report: report.begin(target, len(cases)))
    begin = time.monotonic()
    results: list[Result] = []
    for result in run_cases(cases, fresh):
        results.append(result)
        reports.tell(lambda report, result=result: report.result(result))  # type: ignore[misc]
    summary = Summary(
        target=target,
        results=results,
        clauses=judge_clauses(results, CLAUSES, bound, also),
        seconds=time.monotonic() - begin,
    )
    reports.tell(lambda report: report.end(summary))
    if summary.failed:
        return 1
    faulty = [result.case for result in results if result.faulty]
    if faulty:
        names = ", ".join(faulty)
        print(f"balloon-check: cases with a fault of their own have judged nothing: {names}", file=sys.stderr)
    return NOT_JUDGED if faulty else 0


def _reporter(name: str, stream: TextIO | None, *, verbose: bool) -> Reporter:
    write = _writer(stream)
    if name == "ktap":
        return KtapReport(write)
    if name == "junit":
        return JunitReport(write)
    if name == "json":
        return JsonReport(write)
    colours = stream is not None and stream.isatty() and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    return TableReport(write, width=width, colours=colours, verbose=verbose)


def _writer(stream: TextIO | None) -> Callable[[str], None]:
    def write(line: str) -> None:
        if stream is None:  # standard output may be closed
            return
        with errors_of_standard_output() if stream is sys.stdout else nullcontext():
            print(line, file=stream, flush=True)

    return write
