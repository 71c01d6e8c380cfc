"""Daemons of another version, and programs that are no daemon: each is one line, and writes nothing to the terminal."""

import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from host.balloonctl.__main__ import main
from host.balloonctl.answers import MACHINE, NUMBER_MOST, machines_of
from host.balloonctl.doctor import diagnosis_lines
from host.balloonctl.table import facts_list, status_table
from host.control.vm_facts import describe
from host.qmp.qmp_client import EVENTS_MAX, QmpClient
from protocol.errors import BalloonError
from tests.harness.processes import DEADLINE
from tests.host.control.fake_vm import INFO

WRONG: list[Any] = [None, "x", [], {}, [None], {"": None}, -1, 1.5, float("nan"), float("inf"), NUMBER_MOST, True]
HOSTILE = "\x1b]0;mine\x07\x1b[2J\u202e\n\x9b"


def entry() -> Any:
    """Return one machine as a daemon describes it."""
    return json.loads(json.dumps(describe(1, INFO, 5 << 20)))


def test_answer_of_this_version_is_accepted() -> None:
    assert machines_of([entry(), {"vm": 2, "broken": "its worker is gone", "more": 1}], "c") == [
        entry(),
        {"vm": 2, "broken": "its worker is gone", "more": 1},
    ]
    assert machines_of([entry() | {"broken": "its worker does not answer"}], "c")[0]["name"] == "qemu"
    assert set(MACHINE.members) <= set(entry())


def fits(answer: Any) -> bool:
    try:
        return bool(machines_of([answer], "c"))
    except BalloonError:
        return False


def test_any_other_machine_is_refused_or_can_be_shown() -> None:
    given = entry()
    for key in MACHINE.members:
        without = {name: value for name, value in given.items() if name != key}
        with pytest.raises(BalloonError, match=f"^c: not an answer of .*: '{key}' is missing$"):
            machines_of([without], "c")
        for changed in filter(fits, (given | {key: value} for value in WRONG)):
            assert [*status_table([("1", changed)], 80), *facts_list(changed), *diagnosis_lines("1", changed, 80)]


@contextmanager
def daemon(path: Path, answer: Callable[[str], bytes | Iterator[bytes]]) -> Iterator[None]:
    """Answer commands by name, as many clients as come."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                connection.sendall(b'{"QMP": {}}\r\n')
                for line in lines:
                    name = json.loads(line)["execute"]
                    pieces = b'{"return": {}}\r\n' if name == "qmp_capabilities" else answer(name)
                    for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                        connection.sendall(piece)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


COMMANDS = [
    ["status"],
    ["show"],
    ["doctor"],
    ["stats"],
    ["reclaim"],
    ["inhibit"],
    ["allow"],
    ["disconnect"],
    ["set", "1", "1G"],
    ["log-level", "info"],
]


def run(path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["--control", str(path), *words])
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(line.isprintable() for line in text.splitlines())
    return status, shown.out, shown.err


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no JSON\r\n",
        b"[" * 100_000 + b"\r\n",
        b'{"return": ' + b"9" * 5000 + b"}\r\n",
        b"\xff\xfe\r\n",
        b'{"return": [{"vm": "\\u001b[2J"}]}\r\n',
        b'{"return": {"vm": 1}}\r\n',
        b'{"error": {"class": 1, "desc": "\\u001b[2J\\n\\u202e"}}\r\n',
        b'{"error": null}\r\n{"return": 1}\r\n',
    ],
)
def test_garbage_is_one_line(answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hang_up(_name: str) -> bytes:
        if not answer:
            raise OSError
        return answer

    with daemon(tmp_path / "c", hang_up):
        for words in COMMANDS:
            if words == ["log-level", "info"] and b"return" in answer and b"99" not in answer:
                continue  # its answer is of no use
            status, _, err = run(tmp_path / "c", words, capsys)
            assert status == 1, words
            assert err.startswith("balloonctl: "), words


@pytest.mark.parametrize("other", [None, [], {"inhibited": {"by": 1}}, {"statistics": {"memfree": "x"}}])
def test_answer_of_another_shape_after_a_good_one(
    other: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(name: str) -> bytes:
        return json.dumps({"return": [entry()] if name == "query-vms" else other}).encode() + b"\r\n"

    with daemon(tmp_path / "c", answer):
        for words in (["stats"], ["reclaim"], ["allow"]):
            status, out, err = run(tmp_path / "c", words, capsys)
            assert (status, out) == (1, "")
            assert "not an answer of vhost-user-balloon in this version" in err


def test_words_of_a_daemon_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = entry() | {
        "name": HOSTILE,
        "health": [HOSTILE],
        "inhibited": {"by": HOSTILE, "why": HOSTILE},
        "front-end": HOSTILE,
        "statistics": {HOSTILE: 1},
        "refused-bytes": {HOSTILE: 1 << 30},
        HOSTILE: {HOSTILE: [HOSTILE]},
        "future": 10**400,
    }
    answers = {
        "query-vms": [hostile],
        "query-guest-statistics": {"statistics": {HOSTILE: 1}},
        "allow": {"inhibited": {"by": HOSTILE, "why": HOSTILE}},
    }

    def answer(name: str) -> bytes:
        return json.dumps({"return": answers[name]}).encode() + b"\r\n"

    with daemon(tmp_path / "c", answer):
        for words in (["status"], ["show"], ["doctor"], ["stats"], ["allow"], ["status", "--json"]):
            assert run(tmp_path / "c", words, capsys)[1]


def test_events_before_an_answer_are_bounded(tmp_path: Path) -> None:
    event = b'{"event": "X"}\r\n'

    def flood(name: str) -> bytes | Iterator[bytes]:
        return itertools.repeat(event * 1000) if name == "flood" else event * (EVENTS_MAX + 5) + b'{"return": 1}\r\n'

    with daemon(tmp_path / "c", flood), QmpClient(tmp_path / "c", answer_seconds=DEADLINE) as client:
        assert client.command("query-status") == 1
        assert len(client.events) == EVENTS_MAX
    with (
        daemon(tmp_path / "d", flood),
        QmpClient(tmp_path / "d", answer_seconds=0.05) as client,
        pytest.raises(BalloonError, match=r"no answer within 0\.05 s"),
    ):
        client.command("flood")


def test_closed_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is all that is left then."""
    answers = {"query-vms": [entry()], "query-guest-statistics": {"statistics": {}}}
    with daemon(tmp_path / "c", lambda name: json.dumps({"return": answers[name]}).encode() + b"\r\n"):
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stdin", None)
        for words, status in ((["status"], 0), (["doctor"], 0), (["show"], 0), (["stats"], 0), (["top"], 2)):
            assert main(["--control", str(tmp_path / "c"), *words]) == status
