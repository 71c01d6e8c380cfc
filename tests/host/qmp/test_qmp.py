"""The protocol around commands: negotiation, ids, errors, and what lines look like."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.qmp.qmp import (
    Arguments,
    ErrorClass,
    QmpError,
    QmpSession,
    Request,
    build_event,
    build_greeting,
    build_version,
    shown,
)
from protocol.errors import FramingError

NEGOTIATE = b'{"execute": "qmp_capabilities"}'


def talk(*pieces: bytes) -> list[Any]:
    """Return the answers to a client that sends ``pieces``; every command is carried out and returns its name."""
    session = QmpSession()
    answers = []
    for piece in pieces:
        session.feed(piece)
        while (step := session.next_step()) is not None:
            line = step.success(step.name) if isinstance(step, Request) else step
            assert line.endswith(b"\r\n")
            assert line.count(b"\n") == 1
            answers.append(json.loads(line))
    return answers


def error_of(answer: Any) -> tuple[str, str]:
    """Return class and description of an answer, which has to be an error."""
    return answer["error"]["class"], answer["error"]["desc"]


def test_capabilities_come_first_and_once() -> None:
    early, good, late, command = talk(
        b'{"execute": "query-balloon", "id": 1}' + NEGOTIATE + NEGOTIATE + b'{"execute": "query-balloon", "id": 2}'
    )
    assert error_of(early) == ("CommandNotFound", "'qmp_capabilities' has to come first")
    assert early["id"] == 1
    assert good == {"return": {}}
    assert error_of(late) == ("CommandNotFound", "capabilities were negotiated before")
    assert command == {"return": "query-balloon", "id": 2}


@pytest.mark.parametrize(
    ("arguments", "accepted"), [("{}", 1), ('{"enable": []}', 1), ('{"enable": ["oob"]}', 0), ('{"x": 1}', 0)]
)
def test_capabilities_to_enable_are_refused(arguments: str, accepted: bool) -> None:
    answer, after = talk(f'{{"execute": "qmp_capabilities", "arguments": {arguments}}}{{"execute": "other"}}'.encode())
    assert ("return" in answer) is bool(accepted)
    assert ("return" in after) is bool(accepted)


@pytest.mark.parametrize("identity", ["1", '"text"', "null", '{"a": [1.5, true]}', '"\\ud800"', '"\\u00e9"'])
def test_id_comes_back_as_it_was(identity: str) -> None:
    good, bad = talk(NEGOTIATE + f'{{"execute": "x", "id": {identity}}}{{"execute": 1, "id": {identity}}}'.encode())[1:]
    assert good == {"return": "x", "id": json.loads(identity)}
    assert bad["id"] == json.loads(identity)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ('{"execute": 1}', "'execute'"),
        ("{}", "'execute'"),
        ('{"execute": "x", "arguments": []}', "'arguments'"),
        ('{"execute": "x", "arguments": null}', "'arguments'"),
        ('{"exec-oob": "x"}', "unexpected member 'exec-oob'"),
        ('{"execute": "x", "argument": {}}', "unexpected member 'argument'"),
        ("[]", "not an array"),
        ("quit\n", "not JSON"),
    ],
)
def test_invalid_command_is_a_generic_error(command: str, text: str) -> None:
    _, answer, after = talk(NEGOTIATE + command.encode() + b'{"execute": "after"}')
    error_class, description = error_of(answer)
    assert error_class == "GenericError"
    assert text in description
    assert after == {"return": "after"}


COMMANDS = st.sampled_from(
    [
        NEGOTIATE,
        b'{"execute": "a"}\r\n',
        b'{"execute": "b", "id": "}"}',
        b"junk\n",
        b'{"execute": 7}',
        b"[]",
        b" ",
        b"\xff{",
    ]
)


@given(st.lists(COMMANDS, max_size=8), st.integers(1, 9))
def test_commands_cut_anywhere_get_the_same_answers(commands: list[bytes], step: int) -> None:
    stream = b"".join(commands)
    assert talk(*(stream[at : at + step] for at in range(0, len(stream), step))) == talk(stream)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_random_bytes_are_answered_with_errors_or_not_at_all(pieces: list[bytes]) -> None:
    for answer in talk(NEGOTIATE, *pieces)[1:]:
        assert "error" in answer


def test_command_without_end_ends_the_session() -> None:
    with pytest.raises(FramingError):
        talk(NEGOTIATE + b'{"execute": "' + b"x" * 70_000)


def test_errors_carry_their_class() -> None:
    request = Request(name="x", arguments=Arguments({}), reply={"id": 3})
    assert json.loads(request.failure(QmpError("vm 3 is not connected", ErrorClass.DEVICE_NOT_FOUND))) == {
        "error": {"class": "DeviceNotFound", "desc": "vm 3 is not connected"},
        "id": 3,
    }


def test_arguments_are_taken_once_and_have_to_be_of_the_right_type() -> None:
    arguments = Arguments({"value": 1 << 40, "path": "/machine", "flag": True, "half": 0.5})
    assert arguments.integer("value") == 1 << 40
    assert arguments.text("path") == "/machine"
    assert arguments.optional_integer("vm") is None
    assert arguments.optional_text("method") is None
    for name in ("flag", "half"):
        with pytest.raises(QmpError, match=f"parameter '{name}' has to be an integer"):
            arguments.optional_integer(name)
    with pytest.raises(QmpError, match="parameter 'value' is missing"):
        arguments.integer("value")
    arguments.end()
    with pytest.raises(QmpError, match="unexpected parameter 'x'"):
        Arguments({"x": 1}).end()


def test_lines_have_the_protocols_form() -> None:
    version = build_version("1.22.3", "name")
    assert version == {"qemu": {"major": 1, "minor": 22, "micro": 3}, "package": "name"}
    assert json.loads(build_greeting(version)) == {"QMP": {"version": version, "capabilities": []}}
    assert build_version("(checkout)", "name")["qemu"] == {"major": 0, "minor": 0, "micro": 0}
    assert json.loads(build_event("BALLOON_CHANGE", {"actual": 5}, 1_700_000_000_123_456_789)) == {
        "event": "BALLOON_CHANGE",
        "data": {"actual": 5},
        "timestamp": {"seconds": 1_700_000_000, "microseconds": 123_456},
    }


def test_long_name_is_shown_in_part() -> None:
    assert shown("é\n") == r"'\xe9\n'"
    assert len(shown("x" * 1000)) < 80


@pytest.mark.parametrize("value", [-(1 << 63) - 1, 1 << 64, 10**4000])
def test_integer_that_no_64_bits_hold(value: int) -> None:
    with pytest.raises(QmpError, match=r"^parameter 'vm' has to be an integer of at most 64 bits$"):
        Arguments({"vm": value}).integer("vm")
    assert Arguments({"vm": (1 << 64) - 1}).integer("vm") == (1 << 64) - 1
