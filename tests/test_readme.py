"""The pages that say how to use the project: what they name exists, and their links lead somewhere."""

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ROOMS: Final = ("guest", "host", "protocol", "scripts", "tests")
PAGES: Final = [ROOT / "README.md", *sorted(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))]
LONGEST_README: Final = 160
LONGEST_CELL: Final = 120
FENCE: Final = re.compile(r"^ *```.*?^ *``` *$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings: lower case, no punctuation, hyphens for blanks, numbered if repeated."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_links_are_found_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One: `two`\n[a](#one-two) [b](#three) [c](gone.md)\n```\n# four\n[d](no.md)\n```\n", encoding="utf-8"
    )
    assert broken_links(page) == ["#three", "gone.md"]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_tests_that_a_page_names_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", prose(page))}
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = {name for source in sources for name in re.findall(r"^(?:async )?def (test_\w+)\(", source, re.MULTILINE)}
    assert named
    assert named - defined == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_readable(page: Path) -> None:
    """Every row has as many cells as its table's head, none of them too long to be read in a column."""
    columns = 0
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        columns = columns or len(cells)
        assert len(cells) == columns, line
        assert max(map(len, cells)) <= LONGEST_CELL + 2, line  # the two blanks beside the text


@pytest.mark.parametrize("page", [ROOT / room / "README.md" for room in ("guest", "host")], ids=name_of)
def test_files_that_the_architecture_names_exist(page: Path) -> None:
    _, _, section = prose(page).partition("## Architecture")
    places = (page.parent, ROOT, *(folder for folder in page.parent.iterdir() if folder.is_dir()))
    named = set(re.findall(r"`([\w/]+\.py)`", section))
    assert named
    assert {name for name in named if not any((place / name).is_file() for place in places)} == set()


def test_example_of_a_test_is_one_that_runs() -> None:
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert examples == [(ROOT / "tests/end_to_end/daemon/test_example.py").read_text(encoding="utf-8")]
