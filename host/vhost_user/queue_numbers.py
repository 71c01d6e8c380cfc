"""Which queue has which number. The specification and the drivers differ; the rings that a driver sets up decide.

The dialects differ only where a queue that could exist does not (see :class:`protocol.virtio_balloon.QueueDialect`).
Taking one queue's chains for another's would be fatal: statistics would be read as page numbers, hinted blocks
discarded as if they were reported. So a ring is served only when every dialect that explains all the rings set up so
far gives it the same role. All dialects have equally many numbers, so the last ring that is set up decides.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from protocol.errors import VhostUserError
from protocol.virtio_balloon import BalloonQueue, QueueDialect, queue_numbers

AUTO: Final = "auto"
CHOICES: Final = (AUTO, *(dialect.value for dialect in QueueDialect))
"""The operator's choices."""


@dataclass(slots=True)
class QueueNumbers:
    """The numbering of one session: set by the operator (``ordered``), or inferred if that is None.

    ``dialect`` is the one in force: that of Linux, unless the rings require another.
    """

    ordered: QueueDialect | None = None
    dialect: QueueDialect = QueueDialect.NEGOTIATED

    def __post_init__(self) -> None:
        self.forget()

    @staticmethod
    def named(choice: str) -> "QueueNumbers":
        """Return the numbering for one of :data:`CHOICES`."""
        return QueueNumbers(None if choice == AUTO else QueueDialect(choice))

    def forget(self) -> None:
        """Begin anew, for another driver."""
        self.dialect = self.ordered or QueueDialect.NEGOTIATED

    def learn(self, set_up: Set[int], running: Set[int], *, negotiated: int, offered: int) -> bool:
        """Take note of the numbers of all rings that were ``set_up``. Return whether another dialect is in force now.

        The dialect stays where no dialect explains the rings, such as those of an earlier driver, and where another one
        would change the role of a ring in ``running``.
        """
        candidates = [
            dialect
            for dialect in self._candidates(set_up, negotiated, offered)
            if self._agree_on(running, dialect, negotiated, offered)
        ]
        if not candidates or self.dialect in candidates:
            return False
        self.dialect = candidates[0]
        return True

    def role(self, index: int, set_up: Set[int], *, negotiated: int, offered: int) -> BalloonQueue | None:
        """Return the queue that has number ``index``, None if none has.

        Raises:
            VhostUserError: that depends on the dialect, and the rings ``set_up`` so far do not tell which it is.
        """
        candidates = self._candidates(set_up, negotiated, offered) or [self.dialect]
        roles = {queue_numbers(dialect, negotiated=negotiated, offered=offered).get(index) for dialect in candidates}
        if len(roles) > 1:
            names = " or ".join(queue.value for queue in BalloonQueue if queue in roles)
            raise VhostUserError(f"queue {index} may be {names}, which the other queues will tell")
        return roles.pop()

    def _agree_on(self, running: Set[int], dialect: QueueDialect, negotiated: int, offered: int) -> bool:
        mine, other = (queue_numbers(each, negotiated=negotiated, offered=offered) for each in (self.dialect, dialect))
        return all(mine.get(index) == other.get(index) for index in running)

    def _candidates(self, set_up: Set[int], negotiated: int, offered: int) -> list[QueueDialect]:
        if self.ordered is not None:
            return [self.ordered]
        return [
            dialect
            for dialect in QueueDialect
            if set_up <= queue_numbers(dialect, negotiated=negotiated, offered=offered).keys()
        ]
