"""The line and the page that name the keys."""

from host.terminal_view.keys import Key, help_lines, key_line
from host.terminal_view.styled_line import Span

KEYS = (
    Key(shown="q", label="quit", meaning="end the run"),
    Key(shown="Enter", label="lists", meaning="show the free lists"),
)


def test_key_line_has_the_keys_that_fit_and_the_full_width() -> None:
    assert key_line(KEYS, 24).text == "q quit  Enter lists     "
    assert key_line(KEYS, 12).text == "q quit      "


def test_help_page_explains_each_key() -> None:
    lines = [entry.text for entry in help_lines("Keys", KEYS, [[Span("a note")]], 22)]
    assert lines == ["Keys", "", "q      end the run", "Enter  show the free ~", "", "a note"]
