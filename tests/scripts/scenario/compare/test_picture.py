"""The picture of a comparison."""

from pathlib import Path

import pytest

from protocol.errors import UsageError
from scripts.scenario.compare.picture import check_picture, draw, save_comparison
from tests.scripts.scenario.compare.scores import score

SCORES = {
    "policy=reporting": [score(3.0, 2.0), score(3.2, 2.4)],
    "policy=steady": [score(2.0, 2.0), score(2.2, 2.4)],
    "policy=wsl": [score(3.0, 2.0), score(3.2, 2.4)],
    "policy=esx": [score(1.0, 4.0, 1), score(1.2, 5.0, 1)],
}


def test_every_variant_has_a_mark_and_those_at_one_place_share_a_label(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    check_picture(tmp_path / "a.svg")
    save_comparison(tmp_path / "a.svg", "A title", SCORES)
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    figure = pytest.importorskip("matplotlib.figure").Figure()
    draw(figure, "A title", SCORES)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1 3", "2", "4"]
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == ["1  policy=reporting", "2  policy=steady", "3  policy=wsl", "4  policy=esx (1 OOM)"]
    marks = {(line.get_marker(), line.get_fillstyle()) for line in axes.lines if line.get_marker() not in "|_"}
    assert len(marks) == len(SCORES)  # told apart without colour
    assert len(axes.containers) == len(SCORES)


def test_a_file_that_cannot_be_drawn_is_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match=r"ends in \.png, \.svg, \.pdf"):
        check_picture(Path("a.gif"))
