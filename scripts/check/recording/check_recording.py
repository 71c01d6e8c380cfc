"""What ``--record FILE`` of a check writes: each connection is a session, and says which case it is of."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

from protocol.errors import BalloonError, UsageError
from protocol.process.recording_file import RecordingFile, open_recording
from protocol.recording.records import FRONT_END, Record
from scripts.check.blame import blamed
from scripts.check.recording.recorder import Recorder
from scripts.check.recording.words import CASE, VERDICT
from scripts.check.suite import Case
from scripts.check.verdict import Outcome, Verdict

HUNG_UP: Final = "the back-end ended the connection"

Target = TypeVar("Target")


class CheckRecording:
    """The sessions of a run, whose records go to ``write``. A case runs after the other, on one thread."""

    def __init__(self, write: Callable[[Record], None]) -> None:
        self._write = write
        self._sessions = 0
        self._case: tuple[str, str] | None = None
        self._current: Recorder | None = None

    def connected(self, pid: int) -> Recorder:
        """A connection to process ``pid`` was made: return what records it."""
        self._sessions += 1
        recorder = self._current = Recorder(self._write, self._sessions, FRONT_END)
        recorder.begin(pid)
        self._name_case(recorder)
        return recorder

    def ended(self, recorder: Recorder, reason: str) -> None:
        """The connection of ``recorder`` is closed."""
        recorder.end(reason)
        if recorder is self._current:
            self._current = None

    def _name_case(self, recorder: Recorder) -> None:
        if self._case is not None:
            name, says = self._case
            recorder.remark(CASE, name=name, says=says)

    def watched(self, cases: Sequence[Case[Target]]) -> list[Case[Target]]:
        """Return ``cases`` so that their begins and verdicts are recorded."""
        return [dataclasses.replace(case, run=self._watched(case)) for case in cases]

    def _watched(self, case: Case[Target]) -> Callable[[Target], None]:
        def run(target: Target) -> None:
            self._case = case.name, case.says
            if self._current is not None:
                self._name_case(self._current)
            try:
                case.run(target)
            except Outcome as outcome:
                self._judged(case.name, outcome.verdict, outcome.reason, blamed(outcome, case.clauses))
                raise
            except (BalloonError, OSError) as error:
                self._judged(case.name, Verdict.FAIL, str(error), blamed(error, case.clauses))
                raise
            else:
                self._judged(case.name, Verdict.PASS, "", ())
            finally:
                self._case = None

        return run

    def _judged(self, name: str, verdict: Verdict, reason: str, clauses: Sequence[str]) -> None:
        recorder = self._current or Recorder(self._write, 0)  # of no session
        fields = {"name": name, "verdict": verdict.value, "reason": reason, "clauses": list(clauses)}
        recorder.remark(VERDICT, **fields)


@contextmanager
def open_record(path: Path | None, program: str) -> Iterator[RecordingFile | None]:
    """Yield the open file of ``--record``, None without the option.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = open_recording(path, program)
    except BalloonError as error:
        raise UsageError(str(error)) from error
    with closing(file):
        yield file


def require_writable(path: Path) -> None:
    """Check the file of ``--record`` for a program that is started with it; what is in the file stays.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"--record {path}: not a regular file")
        path.open("ab").close()
    except OSError as error:
        raise UsageError(f"--record {path}: {error.strerror}") from error
