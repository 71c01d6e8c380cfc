"""How ``balloon-check proxy`` refuses what it cannot do: one line, and an exit status that tells which."""

import socket
from pathlib import Path

import pytest

from scripts.check.__main__ import main
from scripts.check.faults.command import read_script, shipped_scripts


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A socket file to which nothing listens."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "target"))
    return tmp_path / "target"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--listen", "{0}/p"], 2, "--connect is needed"),
        (["--connect", "{0}/target"], 2, "--listen is needed"),
        (
            ["--listen", "{0}/target", "--connect", "{0}/target"],
            2,
            "--connect {0}/target: that is where the proxy listens",
        ),
        (["--listen", "{0}/p", "--connect", "{0}/none"], 3, "--connect {0}/none: No such file or directory"),
        (["--listen", "{0}/p", "--connect", "{0}/script"], 3, "--connect {0}/script: not a socket"),
        (["--listen", "{0}/no/p", "--connect", "{0}/target"], 1, "--listen {0}/no/p: No such file or directory"),
        (["--listen", "{0}/script", "--connect", "{0}/target"], 1, "--listen {0}/script: exists and is not a socket"),
        (
            ["--listen", "{0}/p", "--connect", "{0}/target", "--script", "{0}/script"],
            2,
            "{0}/script:2:15: expected a fault: drop, delay, spurious, pass, disconnect, reset, memory, kick or call, "
            "such as drop, found 'drip'",
        ),
        (
            ["--listen", "{0}/p", "--connect", "{0}/target", "--script", "lost-kik"],
            2,
            "--script lost-kik: No such file or directory, such as lost-kick",
        ),
        (
            ["--listen", "{0}/p", "--connect", "{0}/target", "--events", "{0}/no/x"],
            2,
            "--events {0}/no/x: No such file or directory",
        ),
        (
            ["--listen", "{0}/p", "--connect", "{0}/target", "--script", "{0}/bytes"],
            2,
            "--script {0}/bytes: byte 2 is not UTF-8 text",
        ),
    ],
)
@pytest.mark.usefixtures("target")
def test_mistake_is_one_line(
    options: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script").write_text("seed 1\nkick queue 0: drip\n")
    (tmp_path / "bytes").write_bytes(b"# \xff")
    assert main(["proxy", *(option.format(tmp_path) for option in options)]) == status
    assert capsys.readouterr().err == f"balloon-check: {message.format(tmp_path)}\n"
    assert not (tmp_path / "p").exists()


def test_seed_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["proxy", "--listen", "/p", "--connect", "/q", "--seed", "-1"])
    assert ended.value.code == 2
    assert "argument --seed: -1 is not from 0 to 18446744073709551615" in capsys.readouterr().err


def test_shipped_scripts_are_listed_and_say_what_they_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["proxy", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [path.stem for path in shipped_scripts()]
    assert all(len(line.split()) > 2 and line.startswith("    ") and line[-1] != "." for line in lines[1::2])
    assert len(lines) >= 30


def test_shipped_script_is_found_by_its_name() -> None:
    script = read_script(Path("lost-kick"))
    assert [rule.text for rule in script.rules] == ["kick queue reporting occurrence 2: drop"]
