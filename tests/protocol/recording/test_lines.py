"""The form of a recording: every kind of record comes back from its line, and damage is told from an early end."""

import json

import pytest

from protocol.recording import lines, records
from protocol.recording.lines import Cut, RecordingError, build_line, read_records
from protocol.recording.records import (
    FileFact,
    Header,
    Lost,
    Noise,
    PutBack,
    RangeFate,
    Record,
    RecordedDescriptor,
    Remark,
    RingBroken,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.vhost_user_codec import Channel

HEADER = Header(t=10.5, time=1_700_000_000.25, program="vhost-user-balloon 1")

RECORDS: list[Record] = [
    HEADER,
    SessionBegin(t=11, session=1, pid=77, side=records.BACK_END),
    WireMessage(
        t=11.000001,
        session=1,
        stream=Channel.FRONTEND_REQUESTS,
        request=5,
        flags=9,
        payload=b"\x01\xff",
        files=(FileFact("memfd", 4096), FileFact("eventfd")),
    ),
    Noise(t=11.1, session=1, stream=Channel.FRONTEND_REPLIES, data=b"GET / HTTP"),
    RingStart(
        t=11.2,
        session=1,
        ring=2,
        queue="reporting",
        size=128,
        packed=True,
        base=0x80008000,
        event_idx=True,
        indirect_desc=False,
        in_order=False,
    ),
    Signal(t=11.3, session=1, ring=2, what=records.KICK),
    TakenChain(
        t=11.4,
        session=1,
        ring=2,
        queue="reporting",
        head=3,
        descriptors=(RecordedDescriptor(3, 0x1000, 32, 4, 0),),
        table=(0x1000, 32),
        indirect=(RecordedDescriptor(0, 1 << 63, 0x200000, 3, 1), RecordedDescriptor(1, 0, 7, 2, 0)),
        left_out=1,
        ranges=(RangeFate(1 << 63, 0x200000, records.DISCARDED), RangeFate(0, 7, "unaligned")),
        ranges_left_out=2,
        held=True,
        note="command 5",
        seconds=0.25,
    ),
    UsedChain(t=11.5, session=1, ring=2, head=3, length=0, call=True, old=0, new=1, event=0, flags=0),
    PutBack(t=11.6, session=1, ring=2, head=4),
    RingBroken(t=11.7, session=1, ring=2, reason="a loop"),
    RingStop(t=11.8, session=1, ring=2, base=5),
    Remark(t=11.9, session=1, event="message_refused", fields={"request": "SET_OWNER", "reason": "no"}),
    Lost(t=12, session=0, count=4, full=True),
    SessionEnd(t=13, session=1, reason="front-end gone"),
]


def lines_of(*records: Record) -> list[bytes]:
    return [build_line(record).encode("ascii") for record in records]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.KIND)
def test_record_comes_back_from_its_line(record: Record) -> None:
    assert list(read_records(lines_of(HEADER, record))) == [HEADER, record]


def test_every_kind_is_tried() -> None:
    assert {type(record) for record in RECORDS} == set(lines._KINDS.values())


def test_line_is_for_people_too() -> None:
    line = json.loads(build_line(RECORDS[2]))
    assert line == {
        "t": 11.000001,
        "session": 1,
        "record": "message",
        "stream": "front-end requests",
        "request": 5,
        "flags": 9,
        "payload": "01ff",
        "files": [["memfd", 4096], ["eventfd", -1]],
    }


def test_last_line_may_be_cut_anywhere() -> None:
    *whole, last = lines_of(*RECORDS)
    for length in range(1, len(last) - 1):
        assert list(read_records([*whole, last[:length]])) == [*RECORDS[:-1], Cut(len(RECORDS))]


def test_run_may_follow_one_that_was_cut() -> None:
    begin = SessionBegin(t=1, session=1, pid=0, side=records.FRONT_END)
    text = [*lines_of(HEADER), b'{"t":3,"ses\n', *lines_of(HEADER, begin)]
    assert list(read_records(text)) == [HEADER, Cut(2), HEADER, begin]


def test_damage_in_the_middle_is_named_by_its_line() -> None:
    text = [*lines_of(HEADER), b"garbage\n", *lines_of(RECORDS[1])]
    with pytest.raises(RecordingError, match=r"^line 2 is damaged$"):
        list(read_records(text))
    with pytest.raises(RecordingError, match=r"^line 2 is damaged$"):
        list(read_records([text[0], text[1], text[1]]))


@pytest.mark.parametrize(
    "change", [{"ring": "2"}, {"ring": True}, {"ring": None}, {"what": 3}, {"t": "now"}, {"record": 5}]
)
def test_field_of_another_type_is_damage(change: dict[str, object]) -> None:
    fields = json.loads(build_line(Signal(t=1, session=1, ring=2, what="kick"))) | change
    text = [*lines_of(HEADER), json.dumps(fields).encode() + b"\n", *lines_of(RECORDS[1])]
    with pytest.raises(RecordingError, match="line 2 is damaged"):
        list(read_records(text))


@pytest.mark.parametrize(
    "change",
    [
        {"t": float("nan")},
        {"t": float("inf")},
        {"t": 1 << 70},
        {"request": -1},
        {"request": 1 << 32},
        {"flags": 1 << 32},
        {"session": 1 << 63},
        {"files": [["memfd", 1 << 70]]},
    ],
)
def test_number_that_no_program_records_is_damage(change: dict[str, object]) -> None:
    message = WireMessage(t=1, session=1, stream=Channel.FRONTEND_REQUESTS, request=1, flags=1, payload=b"")
    fields = json.loads(build_line(message)) | change
    text = [*lines_of(HEADER), json.dumps(fields).encode() + b"\n", *lines_of(RECORDS[1])]
    with pytest.raises(RecordingError, match="line 2 is damaged"):
        list(read_records(text))


def test_missing_field_is_damage() -> None:
    text = [*lines_of(HEADER), b'{"t":1,"session":1,"record":"signal"}\n', *lines_of(RECORDS[1])]
    with pytest.raises(RecordingError, match="line 2 is damaged"):
        list(read_records(text))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "empty"),
        ([b"\x00\x01\xff"], "not a recording"),
        ([b'{"event": "connected"}\n'], "not a recording"),
        ([b'{"format": "something else"}\n'], "not a recording"),
        ([b"[" * 100_000], "not a recording"),
        (lines_of(RECORDS[1]), "not a recording"),
        ([build_line(HEADER).replace('"version":1', '"version":2').encode()], "a recording of version 2, and this"),
    ],
)
def test_file_that_is_no_recording_is_refused(data: list[bytes], says: str) -> None:
    with pytest.raises(RecordingError, match=f"^{says}"):
        list(read_records(data))


def test_kinds_and_fields_of_a_later_version_are_skipped() -> None:
    kick = Signal(t=1, session=1, ring=2, what="kick")
    more = json.loads(build_line(kick)) | {"new_field": 1}
    text = [*lines_of(HEADER), b'{"t":1,"session":1,"record":"new"}\n', json.dumps(more).encode() + b"\n"]
    assert list(read_records(text)) == [HEADER, kick]
