"""The command line of ``balloon-policy``."""

import pytest

from host.policy.live.__main__ import main
from host.policy.registry import POLICIES


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the NAME of a policy is needed (--list names them)"),
        (["mom"], "--control PATH of at least one daemon is needed"),
        (["mom", "--control", "a", "a"], "--control: a path comes twice"),
        (["mon", "--control", "a"], "no policy is called 'mon', did you mean mom?"),
        (["mom", "--control", "a", "--set", "x"], "--set: parameters are written PARAM=VALUE, not 'x'"),
        (["mom", "--control", "a", "--set", "x=1", "--set", "x=2"], "--set: x comes twice"),
        (["mom", "--control", "a", "--set", "pressure=1"], "mom has no parameter 'pressure', did you mean pressure_"),
        (["mom", "--control", "a", "--interval", "0"], "--interval: 0 is not from 0.05 to 86400 seconds"),
        (["mom", "--control", "a", "--interval", "nan"], "--interval: nan is not from 0.05 to 86400 seconds"),
        (["mom", "--control", "a", "--budget", "0"], "--budget: more than 0 bytes are needed"),
        (["--list", "mon"], "no policy is called 'mon', did you mean mom?"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"balloon-policy: {line}")
    assert output.err.count("\n") == 1


def test_list_names_policies_and_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(POLICIES)
    assert main(["proxmox", "--list"]) == 0
    text = capsys.readouterr().out
    assert "ballooning_target  percent of the host's memory to use (default: 80.0)" in text
    assert "(default: 100.0 MiB)" in text


def test_once_without_a_daemon_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mom", "--control", "/nonexistent/ctl", "--budget", "1G", "--once"]) == 1
    assert "no daemon answered: /nonexistent/ctl: No such file or directory" in capsys.readouterr().err
