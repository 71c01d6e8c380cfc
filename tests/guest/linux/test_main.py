"""The command line of balloon-linux: what it refuses, with one line and the right exit status."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from guest.linux.__main__ import main, resolve_command, split_command
from protocol.errors import BalloonError


def test_words_after_the_first_dashes_are_the_command() -> None:
    assert split_command(["--memory", "1G", "--", "git", "log", "--", "-x"]) == (
        ["--memory", "1G"],
        ["git", "log", "--", "-x"],
    )
    assert split_command(["--version"]) == (["--version"], [])


def test_command_becomes_a_path_in_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SHELL", "/nonexistent")
    shown = resolve_command(["tool", "-x"])
    assert shown[0].endswith(str(program))
    assert shown[1:] == ["-x"]
    assert resolve_command([]) == ["/bin/sh"]
    with pytest.raises(BalloonError, match="no such program"):
        resolve_command(["no-such-tool"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ls", "-l"], "unrecognized arguments: -l: write -- before COMMAND, as in balloon-linux ... -- ls"),
        (["--memry", "1G", "--", "ls"], "unrecognized arguments: --memry (see"),
        (["--append", "mem=1G"], "argument --append: mem cannot be given: the launcher sets it"),
    ],
)
def test_unknown_option_names_the_missing_dashes(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--socket-path", "s", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"balloon-linux: {message}")


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ([], 2, "--socket-path is needed"),
        (["--socket-path", "missing.sock"], 1, "No such file or directory"),
        (["--socket-path", "s", "--memory", "63M"], 2, "at least 64.0 MiB"),
        (["--socket-path", "s", "--memory", "100K"], 2, "whole MiB"),
        (["--socket-path", "s", "--memory", "lots"], 2, "not a size"),
        (["--socket-path", "s", "--", "no-such-tool"], 127, "no such program"),
        (["--socket-path", "s", "--memory", "1000000T"], 1, "no place for"),
        (["--socket-path", "unheard.sock"], 1, "no process listens there (start vhost-user-balloon first)"),
        (["--socket-path", "s", "--events", "/nonexistent/x"], 1, "--events /nonexistent/x"),
        (["--socket-path", "s", "--kernel", "/nonexistent/x"], 1, "no such program"),
        (["--socket-path", "s", "--modules", "/nonexistent/x"], 1, "no such directory"),
    ],
)
def test_refusal_is_one_line(
    options: list[str],
    status: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("guest.linux.__main__.locate", lambda **options: _located(**options))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind("unheard.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("s")
        listener.listen()
        assert main(options) == status
    message = capsys.readouterr().err
    assert message.startswith("balloon-linux: ")
    assert message.count("\n") == 1
    assert reason in message


def _located(*, kernel: Path | None, modules: Path | None, **_rest: object) -> None:
    """Stand in for fetching: only the options are looked at."""
    if kernel is not None:
        raise BalloonError(f"--kernel {kernel}: no such program")
    if modules is not None:
        raise BalloonError(f"--modules {modules}: no such directory")


def test_help_has_an_example_and_version_a_version() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "guest.linux", "--help"], capture_output=True, text=True, check=True, timeout=20
    )
    assert "example:" in shown.stdout
    assert "balloon-linux --socket-path" in shown.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "guest.linux", "--version"], capture_output=True, text=True, check=True, timeout=20
    )
    assert shown.stdout.startswith("balloon-linux ")
