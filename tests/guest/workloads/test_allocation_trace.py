"""Allocation traces: what is written is read back, and what is wrong is found at its line and column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.mm.pageblock import MigrateType
from guest.workloads.allocation_trace import (
    LINE_MAX,
    Alloc,
    Free,
    Phase,
    TraceError,
    TraceEvent,
    TraceWriter,
    parse_trace,
)

HEADER = "balloon-trace 1\n"


def parse(text: str) -> tuple[TraceEvent, ...]:
    return parse_trace(text.splitlines(keepends=True), "t.trace")


def test_example_of_the_documentation() -> None:
    assert parse(
        "balloon-trace 1\n"
        "# seconds  event\n"
        "0.0        phase churn\n"
        "0.0        alloc 1 0\n"
        "\n"
        "0.0        alloc 2 9 unmovable\n"
        "0.25       free 1\n"
    ) == (
        Phase(0.0, "churn"),
        Alloc(0.0, 1, 0, MigrateType.MOVABLE),
        Alloc(0.0, 2, 9, MigrateType.UNMOVABLE),
        Free(0.25, 1),
    )


def test_spaces_tabs_and_windows_line_ends_do_not_matter() -> None:
    assert parse("balloon-trace   1\r\n\t 1   alloc\t7 3 reclaimable  \r\n  # free\r\n2 phase two words \r\n") == (
        Alloc(1.0, 7, 3, MigrateType.RECLAIMABLE),
        Phase(2.0, "two words"),
    )


def test_number_may_be_used_again_after_its_free() -> None:
    assert len(parse(HEADER + "0 alloc 1 0\n0 free 1\n0 alloc 1 2\n")) == 3


def test_trace_without_events_is_one() -> None:
    assert parse(HEADER) == ()


MALFORMED = [
    ("", 1, 1, "the file is empty"),
    ("balloon-trace 2\n", 1, 1, "not a trace: the first line has to be 'balloon-trace 1'"),
    ("\x7fELF\x02\n", 1, 1, "not a trace: the first line has to be 'balloon-trace 1'"),
    (HEADER + "x alloc 1 0\n", 2, 1, "'x' is not a number of seconds"),
    (HEADER + "-1 alloc 1 0\n", 2, 1, "'-1' is not a number of seconds"),
    (HEADER + "nan alloc 1 0\n", 2, 1, "'nan' is not a number of seconds"),
    (HEADER + "1e999 alloc 1 0\n", 2, 1, "'1e999' is not a number of seconds"),
    (HEADER + "2 alloc 1 0\n\n 1.5 free 1\n", 4, 2, "1.5 s is before the 2.0 s of an earlier line"),
    (HEADER + "0.5\n", 2, 4, "an event is missing, one of alloc, free, phase"),
    (HEADER + "0 malloc 1 0\n", 2, 3, "unknown event 'malloc', known are alloc, free, phase"),
    (HEADER + "0 alloc 1\n", 2, 10, "the line ends too early, it has to be: SECONDS alloc NUMBER ORDER [MIGRATETYPE]"),
    (
        HEADER + "0 alloc 1 0 movable x\n",
        2,
        21,
        "'x' is too much, the line is: SECONDS alloc NUMBER ORDER [MIGRATETYPE]",
    ),
    (HEADER + "0 alloc one 0\n", 2, 9, "'one' is not a whole number of at most 18 digits"),
    (HEADER + "0 alloc -1 0\n", 2, 9, "'-1' is not a whole number of at most 18 digits"),
    (HEADER + "0 alloc 1 11\n", 2, 11, "order 11 is not from 0 to 10"),
    (
        HEADER + "0 alloc 1 0 isolate\n",
        2,
        13,
        "unknown migratetype 'isolate', known are movable, unmovable, reclaimable",
    ),
    (HEADER + "0 alloc 1 0\n# so far\n1 alloc 1 0\n", 4, 9, "block 1 is allocated already"),
    (HEADER + "0 free 1\n", 2, 8, "block 1 is not allocated"),
    (HEADER + "0 alloc 1 0\n0 free 1\n0 free 1\n", 4, 8, "block 1 is not allocated"),
    (HEADER + "0 free\n", 2, 7, "the line ends too early, it has to be: SECONDS free NUMBER"),
    (HEADER + "0 phase\n", 2, 8, "the line ends too early, it has to be: SECONDS phase NAME"),
    (
        HEADER + "#" * LINE_MAX + "\n" + "#" * (LINE_MAX + 1),
        3,
        LINE_MAX + 1,
        f"the line is longer than {LINE_MAX} characters",
    ),
    (HEADER + "0 " + "z" * 50 + "\n", 2, 3, f"unknown event '{'z' * 40}...', known are alloc, free, phase"),
]


@pytest.mark.parametrize(("text", "line", "column", "what"), MALFORMED)
def test_malformed_trace_is_refused_with_line_and_column(text: str, line: int, column: int, what: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse(text)
    assert str(caught.value) == f"t.trace:{line}:{column}: {what}"
    assert (caught.value.line, caught.value.column) == (line, column)


@given(st.text(max_size=200))
def test_text_parses_or_fails_with_a_place(text: str) -> None:
    errors: list[TraceError] = []
    for candidate in (text, HEADER + text, HEADER + "0 alloc 1 1\n0 " + text):
        try:
            parse(candidate)
        except TraceError as error:
            errors.append(error)
    assert all(error.line >= 1 and error.column >= 1 and "\n" not in str(error) for error in errors)


@st.composite
def events(draw: st.DrawFn) -> list[TraceEvent]:
    """Return events as a machine would cause them."""
    found: list[TraceEvent] = []
    allocated: list[int] = []
    time = 0.0
    for number in range(draw(st.integers(0, 30))):
        time += draw(st.floats(0, 100))
        kind = draw(st.sampled_from(("alloc", "alloc", "free", "phase")))
        if kind == "free" and allocated:
            found.append(Free(time, allocated.pop(draw(st.integers(0, len(allocated) - 1)))))
        elif kind == "phase":
            found.append(Phase(time, draw(st.sampled_from(("fill", "link 3", "#")))))
        else:
            types = (MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE)
            found.append(Alloc(time, number, draw(st.integers(0, 10)), draw(st.sampled_from(types))))
            allocated.append(number)
    return found


@given(events())
def test_trace_that_was_written_is_read_back(happened: list[TraceEvent]) -> None:
    lines: list[str] = []
    now = 0.0
    writer = TraceWriter(lines.append, lambda: now)
    for event in happened:
        now = event.time
        match event:
            case Alloc(number=number, order=order, migratetype=migratetype):
                writer.allocated(number, order, migratetype)
            case Free(number=number):
                writer.freed(number)
            case Phase(name=name):
                writer.phase(name)
    assert list(parse("".join(lines))) == happened
