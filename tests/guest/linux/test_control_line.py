"""What process 1 writes on the control line."""

import pytest

from guest.linux.control_line import ControlMessage, Stage, parse_control_line, parse_features


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
