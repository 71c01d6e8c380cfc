"""Fuzz targets: the configuration space, a buffer of statistics, the control socket."""

import json
from itertools import cycle
from typing import Any, Final

from host.balloon.balloon_statistics import STATISTICS_BYTES_MAX, parse_statistics
from host.balloon.personality import PERSONALITIES
from host.balloon.virtio_balloon import VirtioBalloon
from host.control.control_commands import ControlCommands
from host.qmp.qmp import QmpSession, Request, build_version
from protocol.balloon_config import BalloonConfig
from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag
from protocol.errors import FramingError
from protocol.virtio_balloon import CONFIG_POISON_VAL
from scripts.check.fuzzing.byte_source import ByteSource, Violation, must

_PERSONALITIES: Final = tuple(PERSONALITIES.values())
_STEPS: Final = 64


def config(data: bytes) -> None:
    """Only bytes that a driver may write change, to what it wrote; a read has the length that was asked for.

    Input: a personality, the 16 bytes to begin with, then accesses: choices, offset (2 bytes), length, the data.
    """
    source = ByteSource(data)
    personality = _PERSONALITIES[source.number() % len(_PERSONALITIES)]
    begin = source.take(16)
    device = VirtioBalloon(config=BalloonConfig.parse(begin), personality=personality)
    for _ in range(_STEPS):
        if not source.left:
            break
        choices, offset, length = source.number(), source.number(2), source.number()
        before = device.config.build()
        if choices & 1:
            offered, runs = bool(choices & 2), bool(choices & 4)
            written = source.take(length)
            device.write_config(offset, written, poison_offered=offered, driver_runs=runs)
            _check_write(before, device, offset, written, offered)
        elif choices & 2:
            device.forget_driver()
            must(device.config.num_pages == BalloonConfig.parse(before).num_pages, "a driver's end changed num_pages")
        else:
            answer = device.read_config(offset, length)
            right = before[: personality.config_size][offset : offset + length].ljust(length, b"\0")
            must(answer == right, "a read gives something other than the configuration")


def _check_write(before: bytes, device: VirtioBalloon, offset: int, written: bytes, offered: bool) -> None:
    after = device.config.build()
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new:
            continue
        must(position in device.personality.writable_config, "a byte changed that a driver may not write")
        must(position not in CONFIG_POISON_VAL or offered, "poison_val changed without PAGE_POISON")
        inside = offset <= position < offset + len(written)
        must(inside and written[position - offset] == new, "a byte changed to what the driver did not write")


_NAMES: Final = {int(tag): tag.name.lower() for tag in StatisticTag}


def statistics(data: bytes) -> None:
    """Any buffer is taken apart: the last value of each tag that is known, the number of those that are not."""
    parsed = parse_statistics(data)
    values: dict[str, int] = {}
    unknown = 0
    at = 0
    while at + STATISTIC_SIZE <= min(len(data), STATISTICS_BYTES_MAX):
        tag = int.from_bytes(data[at : at + 2], "little")
        if tag in _NAMES:
            values[_NAMES[tag]] = int.from_bytes(data[at + 2 : at + 10], "little")
        else:
            unknown += 1
        at += STATISTIC_SIZE
    must(parsed.values == values, "values other than the buffer's")
    must(parsed.unknown == unknown, "a wrong number of unknown tags")


_COMMANDS: Final = ControlCommands({}, lambda: 0.0, build_version("1.2.3", "fuzzed"))


def control(data: bytes) -> None:
    """Every object on the control socket is answered by one line of JSON, however the stream was cut.

    Input: two lengths of pieces, then the stream. Commands run in a daemon without a virtual machine.
    """
    source = ByteSource(data)
    lengths = source.number(), source.number()
    stream = source.rest()
    pieces = _answers(stream, lengths)
    must(pieces == _answers(stream, (0, 0)), "answers depend on how the stream was cut")
    for line in pieces:
        answer: dict[str, Any] = json.loads(line, parse_constant=_no_json)
        must(line.endswith(b"\r\n") and line.count(b"\n") == 1, "an answer is not one line")
        must(("return" in answer) != ("error" in answer), "an answer is neither a success nor an error")
        must(answer.get("error", {}).get("desc") != "internal error", "a command ended in an internal error")


def _no_json(name: str) -> object:
    # Python writes and reads numbers that JSON does not have.
    raise Violation(f"an answer holds {name}")


def _answers(stream: bytes, lengths: tuple[int, int]) -> list[bytes]:
    session = QmpSession()
    answers: list[bytes] = []
    each = cycle(length or len(stream) for length in lengths)
    at = 0
    try:
        while at < len(stream):
            piece = stream[at : at + next(each)]
            at += len(piece)
            session.feed(piece)
            while (step := session.next_step()) is not None:
                answers.append(_perform(step) if isinstance(step, Request) else step)
    except FramingError:
        pass
    return answers


def _perform(request: Request) -> bytes:
    # Without a virtual machine there is nothing that a command could wait for.
    waiting = _COMMANDS.perform(request)
    try:
        waiting.send(None)
    except StopIteration as end:
        return bytes(end.value)
    waiting.close()
    raise AssertionError("a command waits")
