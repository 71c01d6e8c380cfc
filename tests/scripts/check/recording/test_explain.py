"""The words of an explanation: every request has some, faults stand below their record, and lines fit a terminal."""

import json

import pytest

from protocol.recording.lines import Cut
from protocol.recording.records import Header, Noise, Record, SessionBegin, WireMessage
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel, build_message
from protocol.vhost_user_payloads import DeviceConfig, InflightDescription
from scripts.check.recording.explain import Explanation, as_json
from scripts.check.recording.words import ReadMessage, read_message, say
from tests.scripts.check.recording.sessions import Tape, lines_of

LONG = "a reason " * 40


def whole_session() -> Tape:
    tape = Tape()
    tape.ready()
    tape.reply(FrontendRequest.GET_CONFIG, DeviceConfig(offset=0, flags=0, data=bytes(16)))
    inflight = InflightDescription(mmap_size=4096, mmap_offset=0, num_queues=5, queue_size=128)
    tape.ask(FrontendRequest.GET_INFLIGHT_FD, inflight)
    tape.chain(3, "crosses_regions")
    tape.used(3)
    tape.add(Noise(t=tape.now, session=1, stream=Channel.FRONTEND_REQUESTS, data=bytes(100)))
    tape.end(LONG)
    return tape


def test_lines_fit_a_terminal() -> None:
    lines = lines_of(whole_session().records)
    assert len(lines) > 60
    assert [line for line in lines if len(line) > 80] == []


def test_fault_stands_below_the_record_that_shows_it() -> None:
    lines = lines_of(whole_session().records)
    chain = next(number for number, line in enumerate(lines) if "chain 3, 1 descriptor" in line)
    below = [line.strip() for line in lines[chain : chain + 6]]
    assert "[3] 0xc00000 + 4.0 MiB, device writes, kept (crosses regions)" in below
    assert any(line.startswith("!! queue 3 (reporting): not discarded: crosses regions") for line in below)


def test_messages_are_told_with_what_they_mean_and_touch() -> None:
    text = "\n".join(lines_of(whole_session().records))
    assert "> SET_VRING_NUM, wants a reply  [V-28 V-29 V-31]\n                  queue 3 has 16 entries" in text
    assert "< SET_VRING_NUM reply\n                  done" in text
    assert "with eventfd" in text
    assert "used went from 0 to 1, used_event is 0" in text.replace("\n                    ", " ")


def read(stream: Channel, request: int, payload: bytes) -> tuple[WireMessage, ReadMessage]:
    message = WireMessage(t=0, session=1, stream=stream, request=request, flags=1, payload=payload)
    return message, read_message(message)


@pytest.mark.parametrize("stream", Channel)
def test_any_message_has_words(stream: Channel) -> None:
    for request in (*range(50), 1 << 31):
        for size in (0, 1, 8, 16, 24, 40, 72, 268):
            for payload in (bytes(size), b"\xff" * size):
                message, meaning = read(stream, request, payload)
                assert say(message, meaning) != ""


def test_numbers_of_the_two_directions_are_not_mixed_up() -> None:
    change = build_message(BackendRequest.CONFIG_CHANGE_MSG)
    message, meaning = read(Channel.BACKEND_REQUESTS, change[0], b"")
    assert meaning.name == "CONFIG_CHANGE_MSG"
    assert say(message, meaning) == "the configuration space or the device status has changed"
    message, meaning = read(Channel.FRONTEND_REQUESTS, 2, (1 << 32).to_bytes(8, "little"))
    assert say(message, meaning) == "the driver takes version-1"


def test_runs_and_cuts_are_told() -> None:
    begin = SessionBegin(t=5, session=1, pid=0, side="front-end")
    records: list[Record | Cut] = [Header(t=5, time=0, program="first"), begin, Cut(3)]
    records += [Header(t=7, time=0, program="second"), begin]
    explanation = Explanation()
    lines = [line for each in explanation.explain(records) for line in each.lines]
    assert lines[0] == "recorded by first"
    assert lines[2] == "line 3 is not whole: the recording program was killed here"
    assert lines[3] == "recorded by second"
    assert [(session.run, session.number, session.ended) for session in explanation.sessions] == [
        (1, 1, False),
        (2, 1, False),
    ]


def test_same_fault_is_counted() -> None:
    tape = Tape()
    tape.ready()
    for head in range(5):
        tape.chain(head, "out_of_range")
        tape.used(head, head)
    tape.end()
    explanation = Explanation()
    assert len(list(explanation.explain(tape.records))) == len(tape.records)
    (session,) = explanation.sessions
    ((fault, count),) = session.faults.items()
    assert (fault.at, count) == ("chain 0: 1 range, 4.0 MiB", 5)


def test_json_of_a_record_names_its_faults() -> None:
    explained = list(Explanation().explain(whole_session().records))
    objects = [json.loads(json.dumps(as_json(each))) for each in explained]
    assert [each["request"] for each in objects if each.get("from") == "back-end"][:2] == [
        "GET_FEATURES",
        "GET_PROTOCOL_FEATURES",
    ]
    (chain,) = [each for each in objects if each["kind"] == "chain"]
    assert chain["faults"] == [
        {
            "text": "queue 3 (reporting): not discarded: crosses regions",
            "at": "chain 3: 1 range, 4.0 MiB",
            "clauses": [],
        }
    ]
