"""``balloon-lab run`` and the form without a command."""

import errno
import io
import json
import signal
from pathlib import Path

import pytest

from scripts.laboratory.__main__ import main
from scripts.scenario.command import progress
from scripts.scenario.run_record import Sample, VmSample, VmState
from scripts.scenario.scenario_file import shipped_scenarios
from scripts.scenario.view import watched_run
from scripts.scenario.virtual.fleet import Fleet

SMALL = """
title = "A small one"
duration = "10s"
sample = "1s"
[host]
memory = "100M"
[[vm]]
name = "a"
memory = "64M"
reporter = "rotation"
workloads = ["memhog:size=32M,hold=1"]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def test_a_run_with_all_its_output(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    status = main(["run", str(small), "--virtual", "--policy", "mom", "--seed", "5", "--out", str(out), "--json", "-"])
    output, errors = capsys.readouterr()
    assert status == 0
    data = json.loads(output)
    assert (data["policy"], data["seed"], data["vms"]["a"]["state"]) == ("mom", 5, "finished")
    assert json.loads((out / "summary.json").read_text()) == data
    assert "A small one: mom, seed 5, 10 s" in errors
    assert "100 %  10 s:" in errors
    assert len((out / "decisions.jsonl").read_text().splitlines()) == 2


def test_the_table_is_on_standard_output(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(small), "--virtual"]) == 0
    output = capsys.readouterr().out
    assert "  a        finished" in output
    assert "0 OOM events" in output


def test_faults_of_a_policy_are_said_beside_the_score(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_policy.py").write_text(
        "class Faulty:\n"
        "    name, interval = 'faulty', 1.0\n"
        "    def decide(self, seen):\n"
        "        raise SystemExit('enough')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["run", str(small), "--virtual", "--policy", "faulty_policy:Faulty"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "  policy: " in line)
    assert line.endswith("decisions were faulty, the first at 0.0 s: SystemExit: enough")


def test_the_table_is_safe_for_a_terminal_and_says_why_a_machine_has_ended(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SMALL.replace("A small one", "\\u001b[31m" + "long " * 50).replace('"100M"', '"30M"')
    small.write_text(text + 'start = "1050ms"\n')
    assert main(["run", str(small), "--virtual", "--out", str(tmp_path / "out")]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in title
    assert len(title) < 100
    assert "  a oom-killed: out of memory: the machines use 30.0 of 30.0 MiB, and a needs 2 MiB more" in lines
    assert ", 1 OOM event, " in "".join(lines)
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert all(len(repr(event["t"]).partition(".")[2]) <= 6 for event in events)


def test_parameters_of_the_policy_are_set_and_those_of_another_one_left_out(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_text(SMALL.replace("[[vm]]", '[policy]\nname = "proxmox"\ninterval = 5.0\n[[vm]]'))
    out = tmp_path / "out"

    def parameters(*words: str) -> object:
        assert main(["run", str(small), "--virtual", "--out", str(out), *words]) == 0
        return json.loads((out / "summary.json").read_text())["parameters"]

    assert parameters("--set", "interval=2") == {"interval": "2"}
    assert len((out / "decisions.jsonl").read_text().splitlines()) == 6
    assert "left out" not in capsys.readouterr().err
    assert parameters("--policy", "mom", "--set", "pressure_threshold=0.3") == {"pressure_threshold": "0.3"}
    errors = capsys.readouterr().err
    assert "run: interval: parameters of proxmox in the scenario, left out for mom\n" in errors
    assert main(["run", str(small), "--virtual", "--set", "intervall=2"]) == 2
    assert "did you mean interval?" in capsys.readouterr().err
    assert main(["run", str(small), "--virtual", "--set", "interval"]) == 2


def test_list_and_the_old_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(shipped_scenarios())
    assert main(["--list", "pace"]) == 0
    assert capsys.readouterr().out.startswith("pace ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "run needs a scenario"),
        (["run", "taking-turn", "--virtual"], "no scenario is called 'taking-turn', did you mean taking-turns?"),
        (["run", "SMALL", "--virtual", "--policy", "moms"], "no policy is called 'moms', did you mean mom?"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small) if word == "SMALL" else word for word in arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_speed_is_for_virtual_time(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(small), "--speed", "10"]) == 2
    assert "--speed is for virtual time" in capsys.readouterr().err
    for speed in ("0", "-1", "nan", "fast"):
        with pytest.raises(SystemExit):
            main(["run", str(small), "--virtual", f"--speed={speed}"])


def test_without_what_draws_the_view_there_are_lines_of_progress(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_run, "is_terminal", lambda: True)
    monkeypatch.setattr(watched_run, "can_show", lambda: False)
    assert main(["run", str(small), "--virtual"]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("balloon-lab run: no live view, as Textual is not installed")
    assert "100 %  10 s:" in errors
    assert main(["run", str(small), "--virtual", "--plain"]) == 0
    assert capsys.readouterr().err.startswith(" 10 %")


def test_a_wrong_seed_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "x.toml", "--seed", "-1"])
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_partial_results(
    number: signal.Signals, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Fleet._sample

    def interrupted(fleet: Fleet) -> Sample:
        if fleet.now >= 4:
            signal.raise_signal(number)
        return taken(fleet)

    monkeypatch.setattr(Fleet, "_sample", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    try:
        assert main(["run", str(small), "--virtual", "--plain", "--out", str(tmp_path / "out")]) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    data = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert data["interrupted"]
    assert data["vms"]["a"]["state"] == "finished"
    assert data["seconds"] == 4.0


def test_what_cannot_be_written_costs_neither_the_score_nor_what_an_earlier_run_has_left(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(small), "--virtual", "--out", str(out)]) == 0
    (out / "samples.csv").unlink()
    (out / "samples.csv").mkdir()
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    capsys.readouterr()
    assert main(["run", str(small), "--virtual", "--seed", "3", "--out", str(out)]) == 1
    output, errors = capsys.readouterr()
    assert "seed 3" in output
    assert "written:" not in output
    assert errors.endswith(f"--out {out}/samples.csv: Is a directory\n")
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


def test_progress_that_nobody_reads_costs_no_run() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, text)

    full = Full()
    on_sample = progress(10, full)
    for t in range(10):
        on_sample(Sample(t=t, used_bytes=0))


def test_progress_is_a_line_each_tenth() -> None:
    stream = io.StringIO()
    tell = progress(100.0, stream)
    for second in range(101):
        tell(Sample(t=float(second), used_bytes=1 << 30))
    assert len(stream.getvalue().splitlines()) == 10
    assert stream.getvalue().startswith(" 10 %  10 s: 1.00 GiB for 0 machines\n")
    stream.truncate(0)
    progress(1.0, stream)(
        Sample(t=1.0, used_bytes=1 << 30, vms={"a": VmSample(state=VmState.RUNNING, resident_bytes=1)})
    )
    assert stream.getvalue().endswith("100 %  1 s: 1.00 GiB for 1 machine\n")
