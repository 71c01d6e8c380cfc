"""A hostile session: planned by its number and a seed, so that it is the same each time, and played."""

import contextlib
import socket
from enum import Enum
from random import Random
from typing import Final, NamedTuple

from protocol.errors import VhostUserError
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature
from scripts.check.hostile.acts.all_acts import ALL_ACTS
from scripts.check.hostile.acts.attack import Attack, Gone, Stage
from scripts.check.machine.machine import WANTED
from scripts.check.machine.memory_file import MIB, MemoryFile
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.verdict import HungUpError, Outcome

MEMORY_BYTES: Final = 64 * MIB

_SIZES: Final = (1, 2, 4, 16, 128, 256, 1024)
_OPTIONAL: Final = feature_mask(
    FeatureBit.RING_EVENT_IDX, FeatureBit.RING_INDIRECT_DESC, BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT
)
_STAGES: Final = (*Stage, Stage.RUNNING, Stage.RUNNING, Stage.RUNNING)
_LINGER_MAX: Final = 8


class End(Enum):
    """How a session ends."""

    CLOSE = "closes"
    HALF = "ends in the middle of a message"
    NO_MORE_WRITING = "writes no more, and is closed later"
    NO_MORE_READING = "reads no more, and is closed later"
    LATER = "is closed later"


class Plan(NamedTuple):
    """What a session does. ``seed`` is that of its acts, ``linger`` how many sessions after it it is closed.

    Where the daemon does not offer packed rings, the rings are split.
    """

    number: int
    seed: str
    stage: Stage
    packed: bool
    size: int
    features: int
    sealed: bool
    acts: tuple[str, ...]
    end: End
    linger: int

    def __str__(self) -> str:
        ring = f", {'packed' if self.packed else 'split'} rings of {self.size}" if self.stage else ""
        memory = "" if self.sealed or not self.stage else ", memory not sealed"
        return (
            f"session {self.number} ({self.stage.name.lower()}{ring}{memory}): {', '.join(self.acts)}; {self.end.value}"
        )


def plan_of(seed: int, number: int) -> Plan:
    """Return the plan of session ``number`` of a run with ``seed``."""
    random = Random(f"{seed}/{number}")
    stage = random.choice(_STAGES)
    names = [name for name, act in ALL_ACTS.items() if act.stage <= stage]
    # Half of the acts need a session that has come as far.
    late = [name for name, act in ALL_ACTS.items() if act.stage == min(stage, Stage.HALF)]
    acts = tuple(random.choice(random.choice((names, late or names))) for _ in range(random.randrange(1, 4)))
    end = random.choice(tuple(End))
    return Plan(
        number=number,
        seed=f"{seed}/{number}/acts",
        stage=stage,
        packed=random.random() < 0.5,
        size=random.choice(_SIZES),
        features=WANTED & ~(_OPTIONAL & random.getrandbits(64)),
        sealed=random.random() < 0.4,
        acts=acts,
        end=end,
        linger=0 if end in (End.CLOSE, End.HALF) else random.randrange(1, _LINGER_MAX),
    )


def play(device: VhostUserDevice, plan: Plan) -> Attack | str:
    """Play a session up to its end and return it, to be closed; or say why it could not be brought up.

    Raises:
        TargetError: the daemon takes no connection.
    """
    random = Random(plan.seed)
    try:
        attack = _brought_up(device, plan, random)
    except (Outcome, HungUpError, VhostUserError) as error:
        return str(error)
    with contextlib.suppress(Gone):
        for name in plan.acts:
            ALL_ACTS[name].do(attack)
            if random.random() < 0.5:
                attack.settle()
    with contextlib.suppress(Gone, OSError):
        match plan.end:
            case End.HALF:
                attack.send(random.randbytes(random.randrange(1, 12)))
            case End.NO_MORE_WRITING:
                attack.socket.shutdown(socket.SHUT_WR)
            case End.NO_MORE_READING:
                attack.socket.shutdown(socket.SHUT_RD)
            case _:
                pass
    return attack


def _brought_up(device: VhostUserDevice, plan: Plan, random: Random) -> Attack:
    if plan.stage is Stage.CONNECTED:
        return Attack(random, plan.stage, device.connect(), None)
    memory = MemoryFile(MEMORY_BYTES, shrinkable=not plan.sealed)
    packed = plan.packed and has_feature(device.offered, FeatureBit.RING_PACKED)
    try:
        machine = device.machine(wanted=plan.features, packed=packed, size=plan.size, run=False, memory=memory)
    except BaseException:
        with contextlib.suppress(BufferError):  # a ring in it is open
            memory.close()
        raise
    try:
        if plan.stage is Stage.RUNNING:
            machine.run()
        elif plan.stage >= Stage.MEMORY:
            machine.set_memory()
            for index in machine.queues:
                if plan.stage is Stage.HALF and random.random() < 0.5:
                    machine.start(index)
    except BaseException:
        machine.close()
        raise
    return Attack(random, plan.stage, machine.connection, machine)
