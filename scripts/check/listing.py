"""What a command lists, as it is read in a terminal."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator

from protocol.process.command_line import errors_of_standard_output


def print_listing(entries: Iterable[str]) -> None:
    """Print ``entries``, each of one or more lines.

    In a terminal a line that is wider goes on below, as far to the right as it began, its words whole. What goes
    elsewhere, to a file or a search, has each line as it is.
    """
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout is not None and sys.stdout.isatty() else None
    with errors_of_standard_output():
        for entry in entries:
            for line in entry.splitlines():
                for part in [line] if width is None else folded(line, width):
                    print(part)


def folded(line: str, width: int) -> Iterator[str]:
    """Yield ``line`` in parts of at most ``width`` columns, where no word is wider."""
    indent = line[: len(line) - len(line.lstrip())]
    yield from textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False) or [
        ""
    ]
