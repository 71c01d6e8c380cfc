"""What can go wrong in the memory manager.

::

    UsageError
    └── BadPageError           a page was handed to free that is no allocated block of that order; nothing was changed
        ├── DoubleFreeError    the page is free already (perhaps it was never allocated), or out on loan to a reporter
        ├── NotAllocatedError  the page starts no allocated block: it lies inside one, or is no memory at all
        └── WrongOrderError    the page starts an allocated block, but of another order
    BalloonError
    └── CorruptionError        ``validate()`` found lists and arrays that disagree: a fault of this project
"""

from protocol.errors import BalloonError, UsageError


class BadPageError(UsageError):
    """A page was freed that is no allocated block of that order (the kernel's ``bad_page``). The state is unchanged."""

    def __init__(self, message: str, *, pfn: int, order: int) -> None:
        super().__init__(message)
        self.pfn = pfn
        self.order = order


class DoubleFreeError(BadPageError):
    """The page is free already, as a block or inside one; or a reporter holds it, which is free as well."""


class NotAllocatedError(BadPageError):
    """The page is not the first page of an allocated block: it is inside one, or there is no such page."""


class WrongOrderError(BadPageError):
    """The page is the first page of an allocated block, but that block was allocated with another order."""


class CorruptionError(BalloonError):
    """Lists, arrays and counters of the memory manager disagree."""
