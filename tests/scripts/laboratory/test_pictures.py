"""The pictures of the laboratory: their formats, and what tells their series apart."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

from scripts.laboratory import pace, pictures
from scripts.laboratory.__main__ import main
from scripts.laboratory.experiment import Row, summarise
from scripts.laboratory.style import LOOKS, REPORTER_LOOKS, SOURCE_LOOKS, error_bars

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}

# -- the shared style --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["colour", "marker", "line", "hatch"])
def test_looks_differ_in_every_aspect(aspect: str) -> None:
    values = [getattr(look, aspect) for look in LOOKS]
    assert len(set(values)) == len(values)


def test_named_series_have_looks_of_their_own() -> None:
    for names in (REPORTER_LOOKS, SOURCE_LOOKS):
        assert all(first != second for first, second in itertools.combinations(names.values(), 2))
        assert set(names.values()) <= set(LOOKS)


def test_look_is_passed_on_and_can_be_changed() -> None:
    look = LOOKS[1]
    line, bars = look.of_line(markersize=3), look.of_bars()
    assert (line["color"], line["marker"], line["linestyle"], line["markersize"]) == (*_shown(look), 3)
    assert (bars["facecolor"][0], bars["hatch"]) == (look.colour, look.hatch)


def _shown(look: Any) -> tuple[Any, ...]:
    return look.colour, look.marker, look.line


# -- spread ------------------------------------------------------------------------------------------------------------


def test_runs_become_their_median_from_the_least_to_the_most() -> None:
    runs: list[Row] = [{"name": "a", "loss": value, "seed": seed} for seed, value in enumerate((3.0, -1.0, 2.0))]
    row = summarise(runs, ["loss"])
    assert row == {"name": "a", "loss": 2.0, "loss_least": -1.0, "loss_most": 3.0, "seed": 0, "runs": 3}


def test_error_bars_reach_from_the_least_to_the_most() -> None:
    rows = [summarise([{"loss": value} for value in values], ["loss"]) for values in ((1.0, 2.0, 4.0), (5.0, 5.0, 5.0))]
    assert error_bars(rows, "loss") == [[1.0, 0.0], [2.0, 0.0]]


# -- formats -----------------------------------------------------------------------------------------------------------


@needs_matplotlib
@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_same_rows_give_the_same_file(kind: str, tmp_path: Path) -> None:
    rows = pace.measure(1)
    paths = [tmp_path / f"{name}.{kind}" for name in ("first", "second")]
    for path in paths:
        pictures.save_picture(path, pace.EXPERIMENT, rows)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(BEGINNINGS[kind])
    assert first == second


@needs_matplotlib
@pytest.mark.parametrize(
    ("options", "kinds"), [([], ["png"]), (["--format", "svg", "--format", "pdf"], ["svg", "pdf"])]
)
def test_pictures_have_the_formats_asked_for(options: list[str], kinds: list[str], tmp_path: Path) -> None:
    assert main(["pace", "--quick", "--output", str(tmp_path), *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"pace.{kind}" for kind in ("csv", *kinds))


def test_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pace", "--format", "gif"])
    assert "'gif'" in capsys.readouterr().err
