"""``balloon-check explain``: a recording in words, as JSON, or for Wireshark."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from protocol.errors import BalloonError, UsageError
from protocol.recording.lines import Cut, RecordingError, read_records
from protocol.recording.records import Record
from scripts.check.recording.dissector import build_dissector
from scripts.check.recording.explain import Explanation, as_json, fault_as_json
from scripts.check.recording.listing import fault_lines
from scripts.check.recording.options import LISTED_MAX
from scripts.check.recording.pcapng import PcapngWriter


def run(arguments: argparse.Namespace) -> int:
    """Explain ``arguments.file``, or write the files that are asked for instead; return the exit status, 0.

    What went wrong in the session is no failure of this command.

    Raises:
        UsageError: the recording is not named, cannot be read, or is none; or it has no such session.
        BalloonError: a file cannot be written.
    """
    if arguments.dissector is not None:
        _write(arguments.dissector, "--dissector", build_dissector().encode())
    if arguments.file is None:
        if arguments.dissector is None or arguments.pcapng is not None:
            raise UsageError("explain needs a FILE")
        return 0
    if arguments.pcapng is not None:
        _export(arguments)
    if arguments.pcapng is None and arguments.dissector is None:
        _explain(arguments, sys.stdout)
    return 0


def _explain(arguments: argparse.Namespace, out: TextIO) -> None:
    explanation = Explanation(arguments.session, None if arguments.all else LISTED_MAX)
    for each in explanation.explain(_records(arguments.file)):
        if arguments.json:
            print(json.dumps(as_json(each)), file=out)
        elif not arguments.faults:
            for line in each.lines:
                print(line, file=out)
    if arguments.session is not None and not explanation.sessions:
        raise UsageError(f"{arguments.file}: no session {arguments.session}")
    if arguments.json:
        for session in explanation.sessions:
            faults = [{**fault_as_json(fault), "count": count} for fault, count in session.faults.items()]
            summary = {
                "kind": "summary",
                "run": session.run,
                "session": session.number,
                "case": session.case,
                "faults": faults,
            }
            print(json.dumps(summary | {"records": session.records, "messages": session.messages}), file=out)
        return
    for line in summary_lines(explanation):
        print(line, file=out)


def summary_lines(explanation: Explanation) -> Iterator[str]:
    """Yield the summary: for each session how long it is and what went wrong."""
    several = len({session.run for session in explanation.sessions}) > 1
    for session in explanation.sessions:
        title = f"session {session.number}" if session.number else "outside of sessions"
        run = f", run {session.run}" if several else ""
        case = f", {session.case}" if session.case else ""
        open_end = "" if session.ended or not session.number else ", without an end"
        yield ""
        yield f"{title}{run}{case}: {session.messages} messages, {session.records} records{open_end}"
        if not session.faults:
            yield "  nothing went wrong"
        for fault, count in session.faults.items():
            yield from fault_lines(fault, "  !! ", count)
    if not explanation.sessions:
        yield ""
        yield "no session was recorded"


def _records(path: Path) -> Iterator[Record | Cut]:
    try:
        with path.open("rb") as file:
            yield from read_records(file)
    except RecordingError as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _export(arguments: argparse.Namespace) -> None:
    if arguments.pcapng.exists() and arguments.pcapng.samefile(arguments.file):
        raise UsageError(f"--pcapng {arguments.pcapng}: that is the recording")
    records = _records(arguments.file)
    first = next(records)  # before the other file is made: this one may be no recording
    with ExitStack() as stack:
        try:
            out = stack.enter_context(arguments.pcapng.open("wb"))
        except OSError as error:
            raise BalloonError(f"--pcapng {arguments.pcapng}: {error.strerror}") from error
        writer = PcapngWriter(out.write, arguments.session)
        writer.add(first)
        for record in records:
            writer.add(record)


def _write(path: Path, option: str, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BalloonError(f"{option} {path}: {error.strerror}") from error
