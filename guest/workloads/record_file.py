"""The file that ``--record`` writes."""

from pathlib import Path
from typing import TextIO

from protocol.errors import BalloonError


class RecordFile:
    """A text file, begun anew. A disk that fills up ends the recording and not the machine: ``broken`` says why.

    Raises:
        BalloonError: it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken: str | None = None
        try:
            self._stream: TextIO | None = open(path, "w", encoding="utf-8")  # noqa: SIM115  (open while the machine runs)
        except OSError as error:
            raise BalloonError(f"--record {path}: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Add ``text``; once something failed, do nothing."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError as error:
                self.broken = error.strerror
                self.close()

    def close(self) -> None:
        """Write what is left and close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                self.broken = self.broken or error.strerror
