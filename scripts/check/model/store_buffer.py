"""What two processors see of the memory that they share: each sees its own stores at once, the other's later.

A store waits in the processor's store buffer until that is emptied. Loads do not wait for it. So two processors may
both store, then load what the other has stored, and both find the old value, unless a full fence between store and load
empties the buffer (Intel SDM 3A, 9.2.3.4). Here a fence empties it, and a test when it says so.
"""


class Processor:
    """One of them. ``sees`` is the memory as it loads it, and is where it stores."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory
        self._loaded = bytes(memory)
        self.sees = bytearray(memory)

    def flush(self) -> None:
        """Empty the store buffer: every store so far is in memory."""
        for at in _differences(self.sees, self._loaded):
            self._memory[at] = self.sees[at]
        self.load()

    def load(self) -> None:
        """See what is in memory now, but where a store of its own waits."""
        if self._loaded == self._memory:
            return
        waiting = {
            at: self.sees[at] for at in _differences(self.sees, self._loaded) if self.sees[at] != self._memory[at]
        }
        self.sees[:] = self._memory
        self._loaded = bytes(self._memory)
        for at, value in waiting.items():
            self.sees[at] = value


def _differences(first: bytes | bytearray, second: bytes | bytearray) -> list[int]:
    if first == second:
        return []
    return [at for at, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
