"""The kernel's pressure files."""

from pathlib import Path

import pytest

from scripts.scenario.real.pressure import Pressure, parse_some_avg10

TEXT = """\
some avg10=12.50 avg60=3.07 avg300=0.70 total=1386213
full avg10=1.00 avg60=0.00 avg300=0.00 total=789294
"""


def test_the_share_of_ten_seconds_is_read(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text(TEXT)
    assert Pressure(tmp_path / "memory").some_avg10() == 12.5


@pytest.mark.parametrize("text", ["", "full avg10=1.00", "some", "some avg10=x", "some avg60=1"])
def test_a_file_without_it_tells_nothing(text: str) -> None:
    assert parse_some_avg10(text) is None


def test_a_kernel_without_it_tells_nothing(tmp_path: Path) -> None:
    assert Pressure(tmp_path / "missing").some_avg10() is None
