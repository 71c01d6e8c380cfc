"""``balloon-check ownership``: what it prints, what it writes, how it ends."""

import argparse
import json
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.process.command_line import Parser
from scripts.check.ownership.command import SCRIPT_MAX, run
from scripts.check.ownership.faults.all_faults import ALL_FAULTS
from scripts.check.ownership.options import add_to


def arguments(*words: str) -> argparse.Namespace:
    parser = Parser(prog="balloon-check ownership", description="", epilog="")
    add_to(parser)
    return parser.parse_args(words)


def test_clean_run_counts_seeds_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("--seed", "7", "--runs", "3", "--steps", "20")) == 0
    assert capsys.readouterr().out.startswith("no violation: seeds 7 to 9, 60 steps, ")


def test_violation_is_shrunk_told_saved_and_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "late.script", tmp_path / "late.json"
    words = ("--fault", "acknowledged-first", "--save", str(path), "--json", str(report))
    assert run(arguments(*words)) == 1
    out = capsys.readouterr().out
    script = path.read_text()
    assert out.startswith("seed 1 ends in a violation after ")
    assert script in out
    assert "\nlate-discard: the device discards pages " in out
    assert "before that, to page " in out
    assert f"repeat it: balloon-check ownership --replay {path}\n" in out

    (violation,) = json.loads(report.read_text())["violations"]
    assert violation["script"] == script.splitlines()
    assert (violation["race"], violation["source"], violation["event"]) == ("late-discard", "BR-3", "discard")
    assert violation["history"][-1] == "acknowledge"

    assert run(arguments("--replay", str(path))) == 1
    out = capsys.readouterr().out
    assert violation["reason"] in out
    assert out.startswith("   1  reporter         begin ")


def test_script_without_a_violation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fine.script"
    path.write_text("world\nreporter begin 3072+1024 2048+1024\nexpect late-discard BR-3\n")
    assert run(arguments("--replay", str(path))) == 0
    assert "no violation after 1 steps; the script expects late-discard" in capsys.readouterr().out


def test_report_on_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("--runs", "1", "--steps", "5", "--json", "-")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["violations"] == []
    assert captured.err.startswith("no violation: ")


def test_all_faults_are_tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ALL_FAULTS.keys() - {"reported-twice", "done-too-early"}:
        monkeypatch.delitem(ALL_FAULTS, name)
    assert run(arguments("--fault", "all", "--runs", "1", "--steps", "30")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["done-too-early", "not", "found"]
    assert lines[2].split()[:2] == ["reported-twice", "1"]
    assert lines[3].startswith("1 of 2 faults found, ")
    monkeypatch.delitem(ALL_FAULTS, "done-too-early")
    assert run(arguments("--fault", "all", "--runs", "1", "--steps", "30")) == 0


def test_list_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("--list")) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert names == list(ALL_FAULTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fault", "gap-filled"), r"^no fault is called 'gap-filled', such as gaps-filled \(see --list\)$"),
        (("--save", "/nowhere/at/all"), "^--save /nowhere/at/all: /nowhere/at is not a directory$"),
        (("--fault", "all", "--save", "x"), "^--save needs one fault$"),
        (("--replay", "x", "--fault", "all"), "^--replay needs neither --fault"),
    ],
)
def test_wrong_options_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(arguments(*words))


@pytest.mark.parametrize(
    "words", [("--runs", "0"), ("--runs", "x"), ("--seed", "-1"), ("--steps", "1e3"), ("--save", "")]
)
def test_wrong_values_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments(*words)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"world\ncpu1 fly\n", r"script:2:6: expected what cpu1 does \(allocate, exhaust, free, touch\), found 'fly'$"),
        (b"world\n\xff\n", "byte 6 is not UTF-8 text$"),
        (b" " * (SCRIPT_MAX + 1), f"longer than {SCRIPT_MAX} bytes$"),
    ],
)
def test_bad_script_is_a_usage_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "script"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        run(arguments("--replay", str(path)))


def test_script_that_cannot_be_read_or_does_not_fit_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "script"
    with pytest.raises(UsageError, match=r"^--replay .*/script: No such file or directory$"):
        run(arguments("--replay", str(path)))
    with pytest.raises(UsageError, match=r"Is a directory$"):
        run(arguments("--replay", str(tmp_path)))
    path.write_text("world\ncpu1 free 0+1\n")
    with pytest.raises(UsageError, match=r"script: step 1 of 1 cannot be taken: cpu1 free 0\+1$"):
        run(arguments("--replay", str(path)))
