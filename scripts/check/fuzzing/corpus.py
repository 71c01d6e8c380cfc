"""The inputs that fuzzing begins with, in files: those beside this module, or a directory of the user's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import UsageError

CORPUS: Final = Path(__file__).parent / "corpus"
"""A directory for each target, a file for each input. Each is named after what it holds."""


def read_inputs(directory: Path) -> Sequence[bytes]:
    """Return the inputs in ``directory``, in the order of their names. Raises :class:`UsageError` if there is none."""
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    inputs = [path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()]
    if not inputs:
        raise UsageError(f"{directory} holds no file to begin with")
    return inputs
