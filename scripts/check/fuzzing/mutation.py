"""A mutating driver: inputs are copies of a corpus with a few changes, the same ones for the same seed."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

INPUT_MAX: Final = 8192
"""Most bytes of an input: two of the longest messages."""

_NUMBERS: Final = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 4095, 4096, 4097, 32767, 32768, 65535)
_WIDTHS: Final = (1, 1, 2, 2, 4, 8)
_SHRINK_TRIES: Final = 2000


@dataclass(frozen=True, slots=True)
class Crash:
    """An input for which a target raised: the number of the run that found it, and the error."""

    run: int
    data: bytes
    error: Exception

    @property
    def place(self) -> tuple[type[Exception], str, int]:
        """The kind of the error, and the file and line that raised it: the same for the same fault."""
        return _place(self.error)


def _place(error: Exception) -> tuple[type[Exception], str, int]:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), last.filename, last.lineno or 0


class Mutator:
    """Makes inputs of a corpus. The sequence depends on the seed and the corpus alone."""

    def __init__(self, seed: int, corpus: Sequence[bytes]) -> None:
        self._random = Random(seed)
        self._corpus = list(corpus) or [b""]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the corpus as it is, then changed copies without end."""
        yield from self._corpus
        random = self._random
        while True:
            data = bytearray(random.choice(self._corpus))
            for _ in range(1 + int(random.random() ** 2 * 6)):
                self._change(data)
            yield bytes(data[:INPUT_MAX])

    def _change(self, data: bytearray) -> None:
        random = self._random
        kind = int(random.random() * 8)
        if not data or kind == 0:
            at = int(random.random() * (len(data) + 1))
            data[at:at] = random.randbytes(1 + int(random.random() * 16))
            return
        at = int(random.random() * len(data))
        if kind == 1:
            data[at] ^= 1 << int(random.random() * 8)
        elif kind == 2:
            data[at] = int(random.random() * 256)
        elif kind == 3:  # a number near a limit, or its negative
            width = random.choice(_WIDTHS)
            number = random.choice(_NUMBERS) * random.choice((1, 1, -1)) & (1 << 8 * width) - 1
            data[at : at + width] = number.to_bytes(width, "little")
        elif kind == 4:
            del data[at : at + 1 + int(random.random() * 32)]
        elif kind == 5:
            length = 1 + int(random.random() * 64)
            where = int(random.random() * (len(data) + 1))
            data[where:where] = data[at : at + length]
        elif kind == 6:
            length = 1 + int(random.random() * 16)
            where = int(random.random() * len(data))
            data[where : where + length] = data[at : at + length]
        else:
            other = random.choice(self._corpus)
            begin = int(random.random() * (len(other) + 1))
            data[at:] = other[begin:]


def find_crash(
    target: Callable[[bytes], None], inputs: Iterator[bytes], goes_on: Callable[[int], bool]
) -> tuple[int, Crash | None]:
    """Run ``target`` on ``inputs`` while ``goes_on`` of the number of runs; return that number, and the first crash."""
    runs = 0
    for data in inputs:
        if not goes_on(runs):
            break
        runs += 1
        try:
            target(data)
        except Exception as error:
            return runs, Crash(runs, data, error)
    return runs, None


def shrunk(target: Callable[[bytes], None], crash: Crash) -> Crash:
    """Return a crash at the same place with a shorter input, of fewer bytes other than zero."""
    tries = 0

    def crashes(data: bytes) -> Crash | None:
        nonlocal tries
        tries += 1
        try:
            target(data)
        except Exception as error:
            return Crash(crash.run, data, error) if _place(error) == crash.place else None
        return None

    best = crash
    piece = len(crash.data)
    while piece and tries < _SHRINK_TRIES:
        at = 0
        while at < len(best.data) and tries < _SHRINK_TRIES:
            head, cut, tail = best.data[:at], best.data[at : at + piece], best.data[at + piece :]
            found = crashes(head + tail) or (crashes(head + bytes(len(cut)) + tail) if any(cut) else None)
            if found is not None and len(found.data) < len(best.data):
                best = found
                continue
            best = found or best
            at += piece
        piece //= 2
    return best
