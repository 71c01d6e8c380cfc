"""What can go wrong in the memory manager.

::

    UsageError
    └── BadPageError           the page to be freed does not start an allocated block of that order; nothing was changed
        ├── DoubleFreeError    the page is already free (perhaps it was never allocated), or isolated by a reporter
        ├── NotAllocatedError  the page is not the first of an allocated block: it lies inside one, or outside RAM
        └── WrongOrderError    the page starts an allocated block, but of another order
    BalloonError
    └── CorruptionError        ``validate()`` found lists and arrays that disagree: a fault of this project
"""

from protocol.errors import BalloonError, UsageError


class BadPageError(UsageError):
    """The page does not start an allocated block of that order (the kernel's ``bad_page``). The state is unchanged."""

    def __init__(self, message: str, *, pfn: int, order: int) -> None:
        super().__init__(message)
        self.pfn = pfn
        self.order = order


class DoubleFreeError(BadPageError):
    """The page is already free, as a block or inside one, or a reporter has isolated it."""


class NotAllocatedError(BadPageError):
    """The page is not the first page of an allocated block: it lies inside one, or outside RAM."""


class WrongOrderError(BadPageError):
    """The page is the first page of an allocated block, but that block was allocated with another order."""


class CorruptionError(BalloonError):
    """Lists, arrays and counters of the memory manager disagree."""
