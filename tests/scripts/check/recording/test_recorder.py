"""The recorder of a check's own connection: streams by direction, descriptors by what they are, rings on request."""

import os

from protocol.recording.records import (
    BACK_END,
    FRONT_END,
    FileFact,
    Noise,
    Record,
    RecordedDescriptor,
    SessionEnd,
    Signal,
    TakenChain,
    WireMessage,
)
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel, build_ack, build_message
from protocol.vhost_user_payloads import VringFile
from scripts.check.recording.recorder import Recorder
from tests.scripts.check.recording.sessions import faults_of


def streams(records: list[Record]) -> list[Channel]:
    return [record.stream for record in records if isinstance(record, WireMessage)]


def test_front_end_and_back_end_send_different_streams() -> None:
    for side in (FRONT_END, BACK_END):
        records: list[Record] = []
        recorder = Recorder(records.append, 4, side)
        recorder.begin(7)
        recorder.observe("sent", build_message(FrontendRequest.SET_OWNER))
        recorder.observe("received", build_ack(FrontendRequest.SET_OWNER, 0))
        recorder.received(build_message(BackendRequest.CONFIG_CHANGE_MSG), on_channel=True)
        recorder.sent(build_ack(BackendRequest.CONFIG_CHANGE_MSG, 0), on_channel=True)
        first, second, third, fourth = Channel
        expected = [first, second, third, fourth] if side == FRONT_END else [second, first, fourth, third]
        assert streams(records) == expected
        assert {record.session for record in records if isinstance(record, WireMessage)} == {4}


def test_descriptors_are_told_by_what_they_are() -> None:
    records: list[Record] = []
    recorder = Recorder(records.append, 1)
    memory, event = os.memfd_create("ram"), os.eventfd(0)
    read, write = os.pipe()
    try:
        os.ftruncate(memory, 8192)
        recorder.sent(build_message(FrontendRequest.SET_VRING_KICK, VringFile(0, True)), [event, memory, read])
    finally:
        for fd in (memory, event, read, write):
            os.close(fd)
    (message,) = records
    assert isinstance(message, WireMessage)
    assert message.files == (FileFact("eventfd"), FileFact("memfd", 8192), FileFact("pipe"))


def test_half_a_message_is_kept_at_the_end() -> None:
    records: list[Record] = []
    recorder = Recorder(records.append, 1)
    recorder.received(b"\x01\x00\x00")
    recorder.end("the case is over")
    noise, end = records
    assert isinstance(noise, Noise)
    assert noise.data == b"\x01\x00\x00"
    assert isinstance(end, SessionEnd)


def test_chain_that_a_device_never_gives_back_is_found() -> None:
    records: list[Record] = []
    recorder = Recorder(records.append, 1)
    recorder.begin()
    recorder.sent(build_message(FrontendRequest.SET_FEATURES, 1 << 32))
    recorder.ring_started(0, "inflate", 64)
    for head in range(2):
        recorder.offered(0, "inflate", head, [RecordedDescriptor(head, 4096, 64, 0, 0)], note="16 page frame numbers")
        recorder.kicked(0)
    recorder.used(0, 1, 0, call=True)
    recorder.called(0)
    recorder.ring_stopped(0)
    recorder.remark("case", name="inflate-acknowledged")
    assert [type(record) for record in records].count(TakenChain) == 2
    assert [record.what for record in records if isinstance(record, Signal)] == ["kick", "kick", "call"]
    assert faults_of(records) == ["queue 0 (inflate): a chain was never given back (chain 0, when the queue stopped)"]
