"""Takes the bytes of a fuzzer's input apart, and says when a target has found a fault."""


class Violation(Exception):
    """The code under test did what it must never do. ``str()`` says what."""


def must(holds: bool, what: str) -> None:
    """Raise :class:`Violation` with ``what`` unless ``holds``."""
    if not holds:
        raise Violation(what)


class ByteSource:
    """The input from front to back. Past its end there are zeros, so that every input means something."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, width: int = 1) -> int:
        """Return the next ``width`` bytes as a little-endian number."""
        at = self._at
        self._at = at + width
        return int.from_bytes(self._data[at : at + width], "little")

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        at = self._at
        self._at = at + length
        return self._data[at : at + length].ljust(length, b"\0")

    def rest(self) -> bytes:
        """Return all that is left."""
        at, self._at = self._at, len(self._data)
        return self._data[at:]

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return max(0, len(self._data) - self._at)
