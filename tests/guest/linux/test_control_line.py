"""What process 1 writes on the control line."""

import pytest

from guest.linux.control_line import (
    ControlMessage,
    GuestMemory,
    Stage,
    ZoneMemory,
    parse_control_line,
    parse_features,
    parse_memory_line,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"booted 6.1.176\r", ControlMessage(Stage.BOOTED, "6.1.176")),
        (b"status 137", ControlMessage(Stage.STATUS, "137")),
        (b"balloon virtio0 0010", ControlMessage(Stage.BALLOON, "virtio0 0010")),
        (b"failed insmod virtio_balloon", ControlMessage(Stage.FAILED, "insmod virtio_balloon")),
        (b"", None),
        (b"\xff\xfe nonsense", None),
    ],
)
def test_control_line(line: bytes, message: ControlMessage | None) -> None:
    assert parse_control_line(line) == message


@pytest.mark.parametrize(("bits", "number"), [("000001", 32), ("1", 1), ("", 0), ("12", 0), ("0" * 64, 0)])
def test_features_are_written_with_bit_0_first(bits: str, number: int) -> None:
    assert parse_features(bits) == number


def test_state_of_zones_is_parsed() -> None:
    memory = parse_memory_line("250000 5000 1000 8;Normal 100 20 3 4 0 24;DMA 8 1 0 0 0 2\r")
    assert memory == GuestMemory(
        total_bytes=250000 << 10,
        page_cache_bytes=4008 << 10,
        zones=(
            ZoneMemory(name="Normal", free_pages=100, low_watermark=20, pcp_pages=3, nr_free=(4, 0, 24)),
            ZoneMemory(name="DMA", free_pages=8, low_watermark=1, pcp_pages=0, nr_free=(0, 0, 2)),
        ),
    )
    assert memory.free_bytes == 111 * 4096


@pytest.mark.parametrize("text", ["", "1 2 3 4", "1 2 3;Normal 1 2 3 4", "1 2 3 4;Normal 1", "1 2 3 4;Normal x 2 3 4"])
def test_line_without_the_state_of_zones_tells_nothing(text: str) -> None:
    assert parse_memory_line(text) is None
