"""Acts in the middle of a report: the memory shrinks or is replaced, rings stop, the device is reset."""

import os

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import InflightDescription, LogDescription, MemoryTable, VringState
from scripts.check.hostile.acts.act import act
from scripts.check.hostile.acts.attack import Attack, Stage
from scripts.check.hostile.acts.descriptors import memory_file
from scripts.check.hostile.acts.ring_acts import kick, report
from scripts.check.machine.memory_file import MIB
from scripts.check.machine.vhost_user_device import GUEST_BASE, USER_BASE


def _reports(attack: Attack) -> None:
    for queue in attack.queues:
        for _ in range(attack.random.randrange(1, 4)):
            report(attack, queue)


@act("memory-shrinks", Stage.MEMORY)
def _(attack: Attack) -> None:
    """Make the memory file smaller while chains are served in it; make it longer again."""
    if attack.machine is None:
        return
    queues = attack.queues
    _reports(attack)
    attack.memory_is_whole = False
    memory = attack.machine.memory
    try:
        for _ in range(attack.random.randrange(1, 6)):
            os.ftruncate(memory.fd, attack.random.choice((0, 1, MIB, 3 * MIB, memory.size // 2, memory.size)))
            for queue in queues:
                kick(queue)
    except PermissionError:  # sealed
        attack.memory_is_whole = True


@act("memory-replaced", Stage.MEMORY)
def _(attack: Attack) -> None:
    """Replace the memory table, or add and remove regions, while chains are served."""
    random, machine = attack.random, attack.machine
    if machine is None:
        return
    for _ in range(random.randrange(1, 6)):
        _reports(attack)
        size = random.choice((4096, MIB, 16 * MIB, machine.memory.size))
        place = MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE + random.choice((0, 0, 1 << 32))),
            size=size,
            user_address=UserAddress(USER_BASE + random.choice((0, 0, 1 << 32))),
            mmap_offset=random.choice((0, 0, 4096)),
        )
        match random.randrange(4):
            case 0:
                attack.request(FrontendRequest.SET_MEM_TABLE, MemoryTable((place,)), [machine.memory.fd])
            case 1:
                attack.request(FrontendRequest.REM_MEM_REG, random.choice((machine.regions[0], place)))
            case 2:
                attack.request(FrontendRequest.ADD_MEM_REG, place, [memory_file(attack)])
            case _:
                attack.request(FrontendRequest.SET_MEM_TABLE, MemoryTable((machine.regions[0],)), [machine.memory.fd])


@act("stopped-in-report", Stage.HALF)
def _(attack: Attack) -> None:
    """Stop, disable, start or reset while chains are served."""
    for _ in range(attack.random.randrange(1, 6)):
        _reports(attack)
        index = attack.random.randrange(6)
        match attack.random.randrange(5):
            case 0:
                attack.request(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
            case 1:
                attack.request(FrontendRequest.SET_VRING_ENABLE, VringState(index, attack.random.randrange(2)))
            case 2:
                attack.request(FrontendRequest.RESET_DEVICE)
            case 3:
                attack.request(FrontendRequest.SET_STATUS, 0)
            case _:
                attack.request(FrontendRequest.SET_VRING_BASE, VringState(index, attack.number(32)))


@act("inflight-and-log", Stage.NEGOTIATED)
def _(attack: Attack) -> None:
    """Hand over inflight areas and dirty logs of any content and size, and start logging."""
    random = attack.random
    for _ in range(random.randrange(1, 5)):
        fd = attack.keep_fd(os.memfd_create("hostile-area"))
        size = random.choice((0, 4096, 8 * MIB))
        os.ftruncate(fd, size)
        os.pwrite(fd, random.randbytes(min(size, 4096)), 0)
        if random.random() < 0.5:
            area = InflightDescription(
                mmap_size=random.choice((size, attack.number(32))),
                mmap_offset=0,
                num_queues=random.randrange(6),
                queue_size=random.choice((16, 128, 1024)),
            )
            attack.request(FrontendRequest.SET_INFLIGHT_FD, area, [fd])
        else:
            log = LogDescription(random.choice((size, attack.number(32))), random.choice((0, 4096)))
            attack.request(FrontendRequest.SET_LOG_BASE, log, [fd])
            attack.request(FrontendRequest.SET_FEATURES, 1 << 30 | 1 << 26 | 1 << 32)
        os.ftruncate(fd, random.choice((size, 0)))
        _reports(attack)
