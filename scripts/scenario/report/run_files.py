"""Reads the files that a run has written, line by line, and names the place of what is broken."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from protocol.errors import BalloonError, UsageError
from scripts.scenario.results import DECISIONS, EVENTS, FORMAT, LEDGER, MAPS, SAMPLES, SUMMARY

COMPARE: Final = "compare.csv"

Object = Mapping[str, Any]


class RunFiles:
    """The results of one run in ``directory``. Each method reads its file anew, so the files may be large.

    Raises:
        UsageError: there is no such directory, or it has no results of a run.
        BalloonError: the summary is broken, or of another version. Every method, for a file that cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.summary = _summary(directory)

    def events(self) -> Iterator[Object]:
        """Yield the events in order of time."""
        return _objects(self.directory / EVENTS, "t", "event")

    def decisions(self) -> Iterator[Object]:
        """Yield the decisions of the policy."""
        return _objects(self.directory / DECISIONS, "t", "reason")

    def maps(self) -> Iterator[Object]:
        """Yield the maps of memory; nothing where the run kept none."""
        path = self.directory / MAPS
        return _objects(path, "t", "vm", "cell_bytes", "resident") if path.exists() else iter(())

    def samples(self) -> Iterator[Mapping[str, str]]:
        """Yield the lines of the table of samples."""
        return _rows(self.directory / SAMPLES, "t", "vm", "state", "resident_bytes", "host_used_bytes")

    def ledger(self) -> Iterator[Mapping[str, str]]:
        """Yield the lines of the ledger."""
        return _rows(self.directory / LEDGER, "t", "vm", "not_returned_bytes")


def compare_rows(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the lines of a ``compare.csv``.

    Raises:
        BalloonError: it cannot be read, or is no such file.
    """
    return _rows(path, "variant", "seed", "host_gib_minutes")


def _summary(directory: Path) -> Object:
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory with the results of a run")
    path = directory / SUMMARY
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UsageError(f"{path} is not an ordinary file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{directory} has no results of a run: there is no {SUMMARY}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BalloonError(f"{path}: {_reason(error)}") from error
    if not text:
        if (directory / COMPARE).exists():
            raise UsageError(f"{directory} has the results of compare; give it as --compare beside those of a run")
        raise UsageError(f"{directory} has no results: {SUMMARY} is empty, so the run was killed before it wrote them")
    try:
        found = _json(text)
    except ValueError as error:
        raise BalloonError(f"{path}: not JSON ({error})") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT or isinstance(version, bool):  # Python has True == 1
        raise BalloonError(f"{path}: these results are of version {version or 'none'}, this program reads {FORMAT}")
    for name in ("scenario", "score", "vms", "seconds"):
        if name not in found:
            raise BalloonError(f"{path}: {name!r} is missing")
    return dict(found)


def _json(text: str) -> Any:
    # Python's NaN and Infinity are not JSON, and no browser would read a page that has them.
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _objects(path: Path, *needed: str) -> Iterator[Object]:
    for number, line in enumerate(_lines(path), 1):
        try:
            found = _json(line)
        except ValueError:
            raise BalloonError(f"{path}, line {number}: not JSON") from None
        for name in needed:
            if not isinstance(found, dict) or name not in found:
                raise BalloonError(f"{path}, line {number}: {name!r} is missing")
        t = found["t"]
        if isinstance(t, bool) or not isinstance(t, int | float) or not abs(t) < math.inf:
            raise BalloonError(f"{path}, line {number}: t is no number")
        yield found


def _rows(path: Path, *needed: str) -> Iterator[Mapping[str, str]]:
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        names = reader.fieldnames or ()
        for name in needed:
            if name not in names:
                raise BalloonError(f"{path}: column {name!r} is missing")
        for row in reader:
            if None in row or None in row.values():
                raise BalloonError(f"{path}, line {reader.line_num}: not {len(names)} fields")
            yield row
    except csv.Error as error:
        raise BalloonError(f"{path}, line {reader.line_num}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    if path.exists() and not path.is_file():
        raise BalloonError(f"{path}: not an ordinary file")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise BalloonError(f"{path}: {_reason(error)}") from error


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
