"""The ``--json PATH`` option of the scripts: a file, or ``-`` for standard output."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from scripts.report_file import report_file


def open_json(path: str | None) -> AbstractContextManager[TextIO | None]:
    """Return the stream for the JSON as a context manager; it gives None if ``path`` is None.

    Enter it before a long run, so that a wrong path is an error at once. A file is replaced when the context is left
    in order: see :func:`scripts.report_file.report_file`.

    Raises:
        BalloonError: the file cannot be written. When the context is entered, and from a write.
    """
    if path is None or path == "-":
        return nullcontext(sys.stdout if path == "-" else None)
    return report_file(path, "--json")
