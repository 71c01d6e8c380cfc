"""The exported capture is well formed, and the dissector knows every request."""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.recording.records import Noise, Remark
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, build_message
from protocol.virtio_balloon import BalloonQueue
from scripts.check.recording.dissector import build_dissector
from scripts.check.recording.pcapng import LINKTYPE_USER0, PREFIX, PcapngWriter
from tests.scripts.check.recording.sessions import Tape


def session() -> Tape:
    tape = Tape()
    tape.ready()
    tape.chain(3)
    tape.used(3)
    tape.do(FrontendRequest.SET_STATUS, 0, status=1)
    tape.bytes(Channel.BACKEND_REQUESTS, build_message(BackendRequest.CONFIG_CHANGE_MSG))
    tape.add(Noise(t=tape.now, session=1, stream=Channel.FRONTEND_REQUESTS, data=b"GET /"))
    tape.add(Remark(t=tape.now, session=1, event="queue_numbers", fields={"dialect": "negotiated"}))
    tape.end()
    return tape


def export(tape: Tape, only: int | None = None) -> bytes:
    data = bytearray()
    writer = PcapngWriter(data.extend, only)
    for record in tape.records:
        writer.add(record)
    return bytes(data)


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The blocks of a capture, each checked for its two lengths."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        yield kind, data[at + 8 : at + size - 4]
        at += size


def test_capture_has_a_packet_for_each_record_at_its_time() -> None:
    tape = session()
    (section, section_body), (interface, interface_body), *packets = blocks(export(tape))
    assert (section, section_body[:8].hex()) == (0x0A0D0D0A, "4d3c2b1a01000000")
    assert (interface, struct.unpack_from("<H", interface_body)) == (1, (LINKTYPE_USER0,))
    assert {kind for kind, _ in packets} == {6}
    assert len(packets) == len(tape.records) - 1
    number, high, low, captured, original = struct.unpack_from("<IIIII", packets[1][1])
    assert (number, captured) == (0, original)
    assert high << 32 | low == 1_700_000_000_000_000 + round((tape.records[2].t - 100) * 1_000_000)
    prefix = PREFIX.unpack_from(packets[1][1], 20)
    assert prefix == (1, 0, 0, 0, 1)
    assert packets[1][1][20 + PREFIX.size + 2 :].startswith(build_message(FrontendRequest.GET_FEATURES))


def test_capture_may_have_one_session_alone() -> None:
    assert len(list(blocks(export(session(), only=2)))) == 2


def test_dissector_has_the_tables_of_the_protocol() -> None:
    text = build_dissector()
    for request in (*FrontendRequest, *BackendRequest):
        assert f'[{int(request)}] = "{request.name}"' in text
    for feature in ProtocolFeature:
        assert f'[{int(feature)}] = "{feature.name}"' in text
    for queue in BalloonQueue:
        assert f'"{queue.value}"' in text
    assert '{ 1, "stats" }, { 3, "free_page" }, { 5, "reporting" }' in text
    assert '["memory table"] = { { "count", 4 }, { "padding", 4 }, { "regions", "array", "count", {' in text
    assert '[5] = "page-reporting"' in text
    assert "@" not in re.sub(r"--.*", "", text)


@pytest.mark.processes
def test_wireshark_takes_the_capture_apart(tmp_path: Path) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed")
    (tmp_path / "dissector.lua").write_text(build_dissector())
    (tmp_path / "capture.pcapng").write_bytes(export(session()))
    command = [tshark, "-X", f"lua_script:{tmp_path / 'dissector.lua'}", "-r", str(tmp_path / "capture.pcapng")]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def output(*options: str) -> str:
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, env=environment)
        assert result.returncode == 0, result.stderr
        assert "Lua Error" not in result.stdout + result.stderr
        return result.stdout

    lines = output("-T", "fields", "-e", "_ws.col.Info").splitlines()
    assert len(lines) == len(session().records) - 1
    assert "#1 GET_FEATURES" in lines
    assert "#1 SET_PROTOCOL_FEATURES: REPLY_ACK, STATUS" in lines
    assert "#1 SET_VRING_NUM: queue 3 (reporting), 16" in lines
    assert "#1 SET_VRING_NUM reply: done" in lines
    assert "#1 SET_VRING_KICK: queue 3 (reporting), with eventfd" in lines
    assert "#1 SET_STATUS reply: refused" in lines
    assert "#1 CONFIG_CHANGE_MSG" in lines
    assert "#1 5 bytes that are no message" in lines
    tree = output("-V")
    assert "[Expert Info (Error/Malformed): These bytes are not a message]" in tree
    assert "[Expert Info (Warning/Response): The request was refused]" in tree
    chain = output("-T", "fields", "-e", "vub.descriptor.address", "-e", "vub.descriptor.length", "-Y", "vub.head")
    assert chain.splitlines()[0] == f"{3 * (4 << 20):#018x}\t{4 << 20}"
