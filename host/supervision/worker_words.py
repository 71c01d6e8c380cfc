"""What a worker says that reaches others than its machines' front-ends, checked.

A worker that a guest has made its own says what it likes. It can say so of its own machines alone: an event, a notice
or an entry about another machine is left out, and what cannot be read is a :class:`PacketError`.
"""

import json
from collections.abc import Container, Iterator
from typing import Any, Final

from host.supervision.machines import Notices
from host.supervision.packets import UNREADABLE, PacketError

_OF_SESSIONS: Final = "suppressed"
"""The event that counts sessions without an event of their own, and so names no machine."""


def own_lines(body: bytes, vms: Container[int]) -> Iterator[str]:
    """Yield the lines of EVENTS that are about ``vms``. Raises :class:`PacketError`."""
    try:
        lines = body.decode().splitlines()
    except UNREADABLE as error:
        raise PacketError("events that cannot be read") from error
    for line in lines:
        event = _read(line)
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise PacketError("an event that is none")
        if _names(event, vms) or ("vm" not in event and event["event"] == _OF_SESSIONS):
            yield line + "\n"


def pass_on_notice(body: bytes, vms: Container[int], notices: Notices) -> None:
    """Pass a NOTICE on if it is about ``vms``. Raises :class:`PacketError`."""
    match _read(body):
        case ["emit", str(event), {"vm": vm} as data]:
            if _is_of(vm, vms):
                notices.emit(event, data)
        case ["balloon_changed", vm, size] if type(size) is int:
            if _is_of(vm, vms):
                notices.balloon_changed(vm, size)
        case ["forget", vm]:
            if _is_of(vm, vms):
                notices.forget(vm)
        case _:
            raise PacketError("a notice that is none")


def own_entries(answer: bytes, vms: Container[int]) -> dict[int, dict[str, Any]]:
    """Return what the answer to ``query-vms`` has of ``vms``, by number; nothing if it cannot be read."""
    try:
        entries = _read(answer)["return"]
        return {entry["vm"]: entry for entry in entries if isinstance(entry, dict) and _names(entry, vms)}
    except (PacketError, *UNREADABLE):
        return {}


def own_samples(answer: bytes, vms: Container[int]) -> dict[int, list[Any]]:
    """Return what the answer to SAMPLES has of ``vms``, by number. What is in a sample is not looked at."""
    try:
        samples = _read(answer)
        return {each[0]: each for each in samples if isinstance(each, list) and _begins(each) and each[0] in vms}
    except (PacketError, *UNREADABLE):
        return {}


def own_status(answer: bytes, vms: Container[int]) -> Iterator[str]:
    """Yield the lines of the answer to STATUS about ``vms``."""
    try:
        lines = _read(answer)
        yield from [line for line in lines if isinstance(line, str) and number_in_line(line) in vms]
    except (PacketError, *UNREADABLE):
        return


def number_in_line(line: str) -> int:
    """Return the number of the machine that a line of the status is about."""
    return int(line.split()[1])


def is_one_answer(answer: bytes) -> bool:
    """Return whether a control client takes this for the answer to one command."""
    try:
        return isinstance(_read(answer), dict) and b"\n" not in answer.removesuffix(b"\n")
    except PacketError:
        return False


def _begins(sample: list[Any]) -> bool:
    return len(sample) > 1 and type(sample[0]) is int


def _names(document: dict[str, Any], vms: Container[int]) -> bool:
    return _is_of(document.get("vm"), vms)


def _is_of(vm: object, vms: Container[int]) -> bool:
    return type(vm) is int and vm in vms


def _read(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except UNREADABLE as error:
        raise PacketError("what is no document") from error
