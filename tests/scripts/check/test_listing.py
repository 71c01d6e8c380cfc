"""Lists in a terminal and in a file."""

import os
import sys

import pytest

from scripts.check.listing import folded, print_listing

LINE = "    device report-exact/split, device report-as-linux/split, device inflate-then-report/split"


def test_wide_line_goes_on_as_deep_as_it_began_with_its_names_whole() -> None:
    parts = list(folded(LINE, 40))
    assert all(len(part) <= 40 and part.startswith("    ") for part in parts)
    assert " ".join(part.strip() for part in parts) == LINE.strip()
    assert list(folded("", 40)) == [""]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_are_folded_for_a_terminal_alone(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda _: os.terminal_size((40, 24)))
    print_listing([f"name\n{LINE}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name", *(folded(LINE, 40) if is_terminal else [LINE])]
