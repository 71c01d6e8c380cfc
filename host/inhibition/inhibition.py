"""Who keeps a virtual machine's pages from being discarded, and why.

The operator may say so, for what the daemon cannot see: a postcopy migration that another process runs, a snapshot that
is being restored. The daemon says so by itself where the front-end's process shows that a discard would do harm or no
good. QEMU does the same for its own balloon (``ram_block_discard_disable``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Any, Final


class Sign(IntFlag):
    """What a look at the front-end's process has found."""

    STOPPED = 1
    GONE = 2
    VFIO = 4
    USERFAULTFD = 8
    PINNED = 16
    UNSEEN = 32
    """Its descriptors cannot be looked at: it is another user's."""


NO_SIGNS: Final = Sign(0)

REASONS: Final = {
    Sign.VFIO: "the front-end has a VFIO device, which would go on with the old pages",
    Sign.USERFAULTFD: "the front-end handles page faults by userfaultfd, which would fill the holes again",
    Sign.PINNED: "the front-end has its memory locked or pinned, so it has to stay",
}
"""Signs that inhibit discards, the most harmful first."""


class Inhibitor(StrEnum):
    """Who inhibits discards."""

    OPERATOR = "operator"
    DAEMON = "daemon"


@dataclass(frozen=True, slots=True)
class Inhibition:
    """Discards are inhibited: by whom, and why in a few words."""

    by: Inhibitor
    why: str


class InhibitionState:
    """The operator's word and the daemon's own finding. The operator's comes first."""

    def __init__(self) -> None:
        self._operator: Inhibition | None = None
        self._daemon: Inhibition | None = None
        self._forced = False
        self.signs = NO_SIGNS

    @property
    def current(self) -> Inhibition | None:
        """What inhibits discards at present, None if nothing does."""
        if self._operator is not None:
            return self._operator
        return None if self._forced else self._daemon

    def inhibit(self, why: str) -> None:
        """Take the operator's word that nothing may be discarded."""
        self._operator, self._forced = Inhibition(Inhibitor.OPERATOR, why), False

    def allow(self, *, force: bool) -> None:
        """Take the operator's word back. With ``force`` what the daemon finds does not count either, until the next
        :meth:`inhibit`."""
        self._operator, self._forced = None, force

    def found(self, signs: Sign) -> None:
        """Take what a look at the front-end's process has found."""
        self.signs = signs
        why = next((text for sign, text in REASONS.items() if sign in signs), None)
        self._daemon = None if why is None else Inhibition(Inhibitor.DAEMON, why)

    def write_down(self) -> dict[str, Any]:
        """Return it for another process, see :meth:`resume`."""
        operator = None if self._operator is None else self._operator.why
        return {"operator": operator, "forced": self._forced, "signs": int(self.signs)}

    def resume(self, written: Mapping[str, Any]) -> None:
        """Go on from what another process has written down."""
        operator = written["operator"]
        self._operator = None if operator is None else Inhibition(Inhibitor.OPERATOR, operator)
        self._forced = written["forced"]
        self.found(Sign(written["signs"]))
