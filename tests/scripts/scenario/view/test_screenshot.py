"""The live view as a picture."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from scripts.laboratory.__main__ import main

SCENARIO = """
title = "A small one"
duration = "1000s"
[host]
memory = "100M"
[[vm]]
name = "lonely"
memory = "64M"
workloads = ["memhog:size=32M,hold=1"]
"""


def test_a_picture_shows_the_moment_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("textual")
    scenario, picture = tmp_path / "small.toml", tmp_path / "view.svg"
    scenario.write_text(SCENARIO)
    arguments = ["run", str(scenario), "--virtual", "--at", "0.5"]
    assert main([*arguments, "--screenshot", str(picture)]) == 0
    text = "".join(ElementTree.fromstring(picture.read_text()).itertext()).replace("\xa0", " ")
    assert "small, policy reporting" in text
    assert "0.50 s of 0:16:40" in text
    assert "lonely" in text
    assert 'url("' not in text


def test_a_picture_is_of_virtual_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "taking-turns", "--screenshot", str(tmp_path / "view.svg")]) == 2
    assert "--screenshot is for virtual time" in capsys.readouterr().err
