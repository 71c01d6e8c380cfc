"""The messages about the guest's memory.

Source: vhost-user specification, "Memory regions description", "Multiple Memory regions description".
"""

from host.vhost_user import ring_control
from host.vhost_user.actions import AddRegion, DropRegion, Effects, ReplaceMemory
from host.vhost_user.mem_slots import MEM_SLOTS
from host.vhost_user.session import Handling, Session
from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion, RegionTable
from protocol.vhost_user import REGIONS_PER_TABLE
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import MemoryTable


def set_mem_table(session: Session, message: Message) -> Effects:
    """SET_MEM_TABLE: the guest's memory, in place of all earlier regions."""
    assert isinstance(message.payload, MemoryTable)
    if len(message.payload.regions) > REGIONS_PER_TABLE:
        raise VhostUserError(f"a memory table of more than {REGIONS_PER_TABLE} regions")
    table = RegionTable(message.payload.regions)
    yield from ring_control.pause_all(session)
    try:
        yield ReplaceMemory(table, message.fds)
    except VhostUserError:
        yield from ring_control.run_wanted(session)  # on the old memory, which stays
        raise
    session.table = table
    yield from ring_control.run_wanted(session)


def get_max_mem_slots(session: Session, _message: Message) -> Handling:
    """GET_MAX_MEM_SLOTS: the most regions of one virtual machine."""
    yield from ()
    return MEM_SLOTS


def add_mem_reg(session: Session, message: Message) -> Effects:
    """ADD_MEM_REG: add one region."""
    assert isinstance(message.payload, MemoryRegion)
    if len(session.table.regions) >= MEM_SLOTS:
        raise VhostUserError(f"more than {MEM_SLOTS} memory regions")
    table = session.table.with_region(message.payload)
    yield AddRegion(table, message.fds[0])
    session.table = table
    yield from ring_control.run_wanted(session)


def rem_mem_reg(session: Session, message: Message) -> Effects:
    """REM_MEM_REG: remove one region."""
    assert isinstance(message.payload, MemoryRegion)
    number = session.table.number_of(message.payload)
    table = session.table.without(number)
    yield from ring_control.pause_all(session)
    yield DropRegion(table, number)
    session.table = table
    yield from ring_control.run_wanted(session)
