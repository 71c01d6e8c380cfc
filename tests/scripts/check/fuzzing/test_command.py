"""``balloon-check fuzz``: what it prints, what it writes, how it ends."""

import argparse
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import Parser
from scripts.check.fuzzing import command
from scripts.check.fuzzing.byte_source import Violation
from scripts.check.fuzzing.command import Hang, run
from scripts.check.fuzzing.corpus import CORPUS
from scripts.check.fuzzing.options import NAMES, add_to
from scripts.check.fuzzing.targets import TARGETS, Target


def arguments(*words: str) -> argparse.Namespace:
    parser = Parser(prog="balloon-check fuzz", description="", epilog="")
    add_to(parser)
    return parser.parse_args(words)


def planted(data: bytes) -> None:
    """Nothing holds for an input with an odd byte at its end."""
    if len(data) > 4 and data[-1] & 1 and data[0] > 100:
        raise Violation("an odd\nbyte")


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: Mapping[str, Target] = {**TARGETS, "codec": planted}
    monkeypatch.setattr(command, "TARGETS", targets)


def test_clean_run_counts_its_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("statistics", "config", "statistics", "--runs", "70")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["statistics", "70", "inputs"], ["config", "70", "inputs"]]


def test_run_ends_by_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("statistics", "--seconds", "0.01")) == 0
    assert "statistics" in capsys.readouterr().out


@pytest.mark.usefixtures("plant")
def test_fault_is_written_and_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BalloonError, match=r"^a fault was found: codec$"):
        run(arguments("codec", "--runs", "100000", "--save", str(tmp_path)))
    out = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert "of seed 1: Violation: an odd byte" in out
    assert f"balloon-check fuzz codec --input {path}" in out
    assert len(path.read_bytes()) == 5
    with pytest.raises(BalloonError, match="finds a fault"):
        run(arguments("codec", "--input", str(path)))
    assert "Violation: an odd" in capsys.readouterr().err


@pytest.mark.usefixtures("plant")
def test_fault_of_one_target_leaves_the_others_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BalloonError, match="codec"):
        run(arguments("codec", "config", "--runs", "3000", "--save", str(tmp_path)))
    assert "config                 3,000 inputs" in capsys.readouterr().out


def test_input_without_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    path = CORPUS / "codec" / "replies.bin"
    assert run(arguments("codec", "--input", str(path))) == 0
    assert capsys.readouterr().out == f"codec: {path} ({path.stat().st_size} bytes) finds no fault\n"


def test_input_that_does_not_end_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(_data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(command, "HANG_SECONDS", 0.05)
    monkeypatch.setattr(command, "TARGETS", {**TARGETS, "codec": endless})
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(BalloonError, match="a fault was found: codec"):
        run(arguments("codec", "--save", str(tmp_path)))
    assert Hang.__name__ in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_corpus_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").write_bytes(b"\1\0\0\0")
    assert run(arguments("codec", "--corpus", str(tmp_path), "--runs", "20")) == 0
    assert "20 inputs" in capsys.readouterr().out


def test_list_says_what_each_holds_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(lines[::2]) == NAMES
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["codex"], "no target is called 'codex', such as codec"),
        (["codec", "config", "--input", "x"], "need one target"),
        (["--corpus", "x"], "need one target"),
        (["codec", "--save", "/nonexistent"], "--save /nonexistent is not a directory"),
        (["codec", "--corpus", "/nonexistent"], "/nonexistent is not a directory"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        run(arguments(*words))


@pytest.mark.parametrize("words", [["--runs", "0"], ["--seconds", "0"], ["--seconds", "nan"], ["--seed", "x"]])
def test_wrong_numbers_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(*words)


def test_coverage_needs_atheris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BalloonError, match=r"^--coverage needs the Python package atheris, which is not installed$"):
        run(arguments("codec", "--coverage"))


def test_input_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError) as caught:
            run(arguments("codec", "--input", str(path)))
        assert str(caught.value) == f"--input {path}: {why}"
