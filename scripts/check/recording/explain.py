"""Explains a recording: every record in words, what went wrong marked in its place, and all of that in a summary."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocol.recording.lines import Cut
from protocol.recording.records import Header, Record, Remark, WireMessage
from scripts.check.recording.judge import Fault, Judge
from scripts.check.recording.listing import Listing, fault_lines
from scripts.check.recording.options import LISTED_MAX
from scripts.check.recording.words import CASE, ReadMessage, is_from_back_end, read_message, say, say_file

FAULTS_MAX: Final = 1000
"""Most different faults of one session that are kept."""


@dataclass(slots=True)
class SessionSummary:
    """One session: ``number`` in its run, how many records it has, and its faults with the number of each. ``case`` is
    the name of the check's case that it is of, "" for none."""

    run: int
    number: int
    case: str = ""
    records: int = 0
    messages: int = 0
    ended: bool = False
    faults: dict[Fault, int] = field(default_factory=dict)

    def add(self, fault: Fault) -> None:
        """Count ``fault``. The first place at which it was seen is kept."""
        for known in self.faults:
            if known[:2] == fault[:2]:
                self.faults[known] += 1
                return
        if len(self.faults) < FAULTS_MAX:
            self.faults[fault] = 1


@dataclass(frozen=True, slots=True)
class Explained:
    """One record with what it means and what it shows. Exactly one of ``record`` and ``cut`` is there."""

    record: Record | None
    cut: Cut | None
    read: ReadMessage | None
    lines: tuple[str, ...]
    faults: tuple[Fault, ...]


class Explanation:
    """Explains records in their order. ``session`` limits it to the sessions of one number."""

    def __init__(self, session: int | None = None, listed_max: int | None = LISTED_MAX) -> None:
        self._only = session
        self._listing = Listing(listed_max)
        self._judges: dict[int, Judge] = {}
        self._current: dict[int, SessionSummary] = {}
        self._run = 0
        self.sessions: list[SessionSummary] = []

    def explain(self, records: Iterable[Record | Cut]) -> Iterator[Explained]:
        """Yield what each record means. Sessions without an end are ended by the end of their run."""
        for record in records:
            if isinstance(record, Cut):
                text = f"line {record.line} is not whole: the recording program was killed here"
                yield Explained(None, record, None, (text,), ())
                continue
            if isinstance(record, Header):
                self._end_run()
                self._run += 1
                self._listing = self._listing.anew()
                yield Explained(record, None, None, tuple(self._listing.lines(record, None)), ())
                continue
            if self._only is not None and record.session not in (self._only, 0):
                continue
            yield self._explain(record)
        self._end_run()

    def _explain(self, record: Record) -> Explained:
        assert not isinstance(record, Header)
        read = read_message(record) if isinstance(record, WireMessage) else None
        judge = self._judges.setdefault(record.session, Judge())
        summary = self._summary(record.session)
        faults = judge.follow(record, read)
        summary.records += 1
        summary.messages += isinstance(record, WireMessage)
        if isinstance(record, Remark) and record.event == CASE:
            summary.case = str(record.fields.get("name", ""))
        lines = [*self._listing.lines(record, read)]
        for fault in faults:
            summary.add(fault)
            lines += fault_lines(fault)
        if record.KIND == "end":
            summary.ended = True
            self._judges.pop(record.session)
            self._current.pop(record.session)
        return Explained(record, None, read, tuple(lines), tuple(faults))

    def _summary(self, number: int) -> SessionSummary:
        if number not in self._current:
            self._current[number] = SessionSummary(self._run, number)
            self.sessions.append(self._current[number])
        return self._current[number]

    def _end_run(self) -> None:
        for number, judge in self._judges.items():
            for fault in judge.left_open():
                self._current[number].add(fault)
        self._judges.clear()
        self._current.clear()


def as_json(explained: Explained) -> dict[str, object]:
    """Return one record, what it means and what it shows as JSON has it."""
    record = explained.record
    fields: dict[str, object] = {}
    if record is not None:
        fields = {"kind": record.KIND, "t": record.t}
        if not isinstance(record, Header):
            fields["session"] = record.session
    if isinstance(record, WireMessage):
        assert explained.read is not None
        fields |= {
            "stream": record.stream.value,
            "from": "back-end" if is_from_back_end(record.stream) else "front-end",
            "request": explained.read.name,
            "means": say(record, explained.read),
            "files": [say_file(file) for file in record.files],
        }
    fields["text"] = [line.strip() for line in explained.lines]
    if explained.faults:
        fields["faults"] = [fault_as_json(fault) for fault in explained.faults]
    return fields


def fault_as_json(fault: Fault) -> dict[str, object]:
    """Return a fault as JSON has it."""
    return {"text": fault.text, "at": fault.at, "clauses": list(fault.clauses)}
