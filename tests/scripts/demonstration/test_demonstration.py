"""The demonstration's command line: what it refuses, and with what words. End to end it runs in tests/end_to_end."""

from pathlib import Path

import pytest

from protocol.units import GIB, MIB
from scripts.demonstration import __main__ as command
from scripts.demonstration.settings import Settings


@pytest.mark.parametrize("memory", ["1", "255M", "65G", "1T", "256.5M", "x", "268435457"])
def test_size_that_makes_no_demonstration_is_refused(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command.main(["--memory", memory])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_host_that_is_too_small_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.scenario.real.budget.memory_for_us", lambda: 100 * MIB)
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "balloon-demo: this needs 1.2 GiB of free memory, 100.0 MiB are available: try a smaller --memory\n"
    )


def test_result_that_cannot_be_written_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--json", str(tmp_path / "missing" / "x")]) == 1
    assert capsys.readouterr().err.endswith("missing/x: No such file or directory\n")


def test_closed_standard_output_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert command.main([]) == 1
    assert capsys.readouterr().err == "balloon-demo: standard output is closed\n"


@pytest.mark.parametrize("memory", [256 * MIB, GIB, 64 * GIB])
def test_budget_fits_one_machine_and_not_two(memory: int) -> None:
    settings = Settings(memory_bytes=memory, real=False, budget="auto")
    # The processes themselves take about 30 MiB each, which a cgroup counts and the script's accounting does not.
    assert settings.wanted_bytes + 2 * 30 * MIB <= settings.budget_bytes
    assert 2 * settings.wanted_bytes > settings.budget_bytes
    assert settings.wanted_bytes < memory


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command.main(["--help"])
    assert leaving.value.code == 0
    assert "scripts/demo --real" in capsys.readouterr().out
