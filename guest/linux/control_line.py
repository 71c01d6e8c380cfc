"""The lines that the guest's process 1 writes on the control line while the guest boots and ends."""

import enum
from dataclasses import dataclass


class Stage(enum.Enum):
    """First word of each line that the guest writes on its control line."""

    BALLOON = "balloon"
    BOOTED = "booted"
    STATUS = "status"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """One line of the control line: the stage and its text, unparsed."""

    stage: Stage
    text: str


def parse_control_line(line: bytes) -> ControlMessage | None:
    """Parse a line of the guest; ``None`` for any other line (COMMAND is root in its guest and may write there)."""
    verb, _, text = line.decode("utf-8", "replace").strip().partition(" ")
    try:
        return ControlMessage(Stage(verb), text)
    except ValueError:
        return None


def parse_features(bits: str) -> int:
    """Return the number that sysfs writes as a row of binary digits with bit 0 first; 0 for anything else."""
    digits = bits.strip()
    return int(digits[::-1], 2) if digits and not digits.strip("01") else 0
