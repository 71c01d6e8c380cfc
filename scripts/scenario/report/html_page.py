"""Puts data, style and script into the page: one file that needs no other, and no network."""

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from protocol.errors import BalloonError

PAGE: Final = "page"

STYLES: Final = ("page.css",)
SCRIPTS: Final = ("model.js", "drawing.js", "charts.js", "machine.js", "lists.js", "main.js")
"""The parts of the style and of the script, in this order."""


def html_page(data: Mapping[str, Any]) -> str:
    """Return the page. ``data`` may have any text: none of it is taken for markup."""
    values = {
        "{{title}}": html.escape(str(data["title"])),
        "{{style}}": "\n".join(map(_part, STYLES)),
        "{{data}}": json_block(data),
        "{{script}}": "\n".join(map(_part, SCRIPTS)),
    }
    # Each place is filled once, from the first to the last: a title with "{{data}}" in it stays text.
    page, rest = "", _part("page.html")
    for place, value in values.items():
        before, _, rest = rest.partition(place)
        page += before + value
    return page + rest


def json_block(data: Mapping[str, Any]) -> str:
    """Return ``data`` as JSON for a script element: ASCII without ``<``, ``>`` and ``&``, so nothing ends it early.

    Raises:
        BalloonError: it has a number that JSON has not, such as 1e400.
    """
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise BalloonError(f"the results are broken: a number is not finite ({error})") from error
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return files(__package__).joinpath(PAGE, name).read_text(encoding="utf-8")
