"""The ``--json PATH`` option of the scripts: a file, or ``-`` for standard output."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from protocol.errors import BalloonError


def open_json(path: str | None) -> AbstractContextManager[TextIO | None]:
    """Return the stream for the JSON as a context manager that closes it; it gives None if ``path`` is None.

    Call it before a long run, so that a wrong path is an error at once.

    Raises:
        BalloonError: the file cannot be written.
    """
    if path is None or path == "-":
        return nullcontext(sys.stdout if path == "-" else None)
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise BalloonError(f"--json {path}: {error.strerror}") from error
