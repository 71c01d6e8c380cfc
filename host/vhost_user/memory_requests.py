"""The messages about the guest's memory.

Source: vhost-user specification, "Memory regions description", "Multiple Memory regions description".
"""

from host.vhost_user.actions import AddRegion, DropRegion, Effects, ReplaceMemory
from host.vhost_user.ring_control import RingControl
from host.vhost_user.session import MEM_SLOTS, Handler, Handling, Session
from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion, RegionTable
from protocol.vhost_user import REGIONS_PER_TABLE, FrontendRequest
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import MemoryTable


class MemoryRequests:
    """Takes the guest's memory as one table or region by region."""

    def __init__(self, session: Session, rings: RingControl) -> None:
        self._session = session
        self._rings = rings

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.SET_MEM_TABLE: self._set_mem_table,
            FrontendRequest.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            FrontendRequest.ADD_MEM_REG: self._add_mem_reg,
            FrontendRequest.REM_MEM_REG: self._rem_mem_reg,
        }

    def _set_mem_table(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryTable)
        if len(message.payload.regions) > REGIONS_PER_TABLE:
            raise VhostUserError(f"a memory table of more than {REGIONS_PER_TABLE} regions")
        table = RegionTable(message.payload.regions)
        yield from self._rings.pause_all()
        try:
            yield ReplaceMemory(table, message.fds)
        except VhostUserError:
            yield from self._rings.run_wanted()  # on the old memory, which stays
            raise
        self._session.table = table
        yield from self._rings.run_wanted()

    def _get_max_mem_slots(self, _message: Message) -> Handling:
        yield from ()
        return MEM_SLOTS

    def _add_mem_reg(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryRegion)
        if len(self._session.table.regions) >= MEM_SLOTS:
            raise VhostUserError(f"more than {MEM_SLOTS} memory regions")
        table = self._session.table.with_region(message.payload)
        yield AddRegion(table, message.fds[0])
        self._session.table = table
        yield from self._rings.run_wanted()

    def _rem_mem_reg(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryRegion)
        number = self._session.table.number_of(message.payload)
        table = self._session.table.without(number)
        yield from self._rings.pause_all()
        yield DropRegion(table, number)
        self._session.table = table
        yield from self._rings.run_wanted()
