"""The page in Chromium: quick, moved by keys, no wider than a phone, and silent on the console."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from scripts.scenario.report.html_page import html_page
from scripts.scenario.report.page_data import page_data
from scripts.scenario.report.run_files import RunFiles
from tests.harness.chromium import Chromium, find_chromium
from tests.scripts.scenario.report.small_run import HOSTILE, write_small_run

CHROMIUM: Final = find_chromium()

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]

COMPLETE: Final = """new Promise((done) => {
  const look = () => performance.getEntriesByName("complete").length ? done(true) : setTimeout(look, 5);
  look();
})"""
PAINTED: Final = "document.querySelector('canvas').toDataURL()"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_small_run(tmp_path_factory.mktemp("run"))
    path = out / "report.html"
    path.write_text(html_page(page_data(RunFiles(out), [out])))
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    assert CHROMIUM is not None
    with Chromium(CHROMIUM) as browser:
        yield browser


def opened(chromium: Chromium, page: Path, **place: Any) -> None:
    """Open the page, and wait until all of it is drawn."""
    chromium.problems.clear()
    chromium.open(page, **place)
    assert chromium.evaluate(COMPLETE)


def clock(chromium: Chromium) -> str:
    """Return the moment that the page shows."""
    return str(chromium.evaluate("document.getElementById('clock').textContent")).split(" / ")[0]


def test_it_answers_within_a_second(chromium: Chromium, page: Path) -> None:
    found = []
    for _ in range(3):  # the first page of a browser pays for the browser, and others work on this machine
        opened(chromium, page)
        found.append(chromium.evaluate("performance.getEntriesByName('interactive')[0].startTime"))
    assert min(found) < 1000
    assert chromium.evaluate("document.querySelector('h3').textContent") == HOSTILE
    assert chromium.evaluate("document.querySelectorAll('#what-if tbody tr').length") == 2
    assert chromium.problems == []


def test_arrow_keys_move_through_time(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    chromium.press("Home")
    assert clock(chromium) == "0.00 s"
    assert chromium.evaluate("document.querySelector('.state').textContent") == "running"
    reasons = "[...document.querySelectorAll('article > p')].filter((one) => !one.hidden && one.textContent).length"
    assert chromium.evaluate(reasons) == 0  # no machine has ended yet
    seen = {chromium.evaluate(PAINTED)}
    for _ in range(4):
        chromium.press("ArrowRight")
    assert clock(chromium) == "1.00 s"
    seen.add(chromium.evaluate(PAINTED))
    assert len(seen) == 2  # another picture of memory
    for _ in range(100):
        if chromium.evaluate("document.activeElement.id") == "scrubber":
            break
        chromium.press("Tab")
    assert chromium.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    chromium.press("ArrowLeft")
    assert clock(chromium) == "0.75 s"
    chromium.press("End")
    assert chromium.evaluate("document.getElementById('scrubber').getAttribute('aria-valuetext')") == "12.00 s"
    states = chromium.evaluate("[...document.querySelectorAll('.state')].map((one) => one.textContent)")
    assert states == ["finished", "oom-killed", "waiting"]
    assert chromium.evaluate(reasons) == 1
    assert chromium.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(dark: bool, chromium: Chromium, page: Path) -> None:
    opened(chromium, page, width=360, height=740, dark=dark)
    assert chromium.evaluate("document.documentElement.scrollWidth") == 360
    paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
    assert chromium.problems == []


def test_what_is_drawn_has_words_too(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    unnamed = "[...document.querySelectorAll('canvas, svg[role=img]')].filter((one) => !one.getAttribute('aria-label'))"
    assert chromium.evaluate(f"{unnamed}.length") == 0
    chromium.press("Home")
    said = chromium.evaluate("document.querySelector('canvas').getAttribute('aria-label')")
    assert "in use" in said
    assert "free, not reported" in said
