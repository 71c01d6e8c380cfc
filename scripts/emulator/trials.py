"""The trials with a guest of QEMU, one function for each row of the table; each returns a short note."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, Final

from host.qmp.qmp_client import QmpClient
from protocol.errors import BalloonError
from protocol.units import MIB, format_size
from protocol.virtio import FeatureBit, has_feature
from protocol.virtio_balloon import BalloonFeature
from scripts.child_processes import Child
from scripts.emulator.command import Poison
from scripts.emulator.machine import EmulatedMachine

FILLED: Final = 200 * MIB
"""Bytes that the guest fills and frees."""

INFLATED: Final = 256 * MIB
"""Size of the balloon in bytes."""

RETURN_SECONDS: Final = 40.0
"""The kernel waits 2 s before a pass of reporting and takes a sixteenth of its list at a time."""

LEFT: Final = 48 * MIB
"""What the balloon leaves the guest before a program asks for half as much again, in bytes."""

INSERTIONS: Final = 3

SMALL_BLOCKS: Final = 16 * MIB
"""What is free in small blocks, which a driver does not report, in bytes."""

ATTEMPTS: Final = 10
"""How often free memory is compared: while a report is under way, its 128 MiB are free for neither side."""

STOPS: Final = 8
"""How often the guest is stopped and continued while it reports."""

_LOOK_SECONDS: Final = 0.02


@dataclass(slots=True)
class Scene:
    """A running guest at its daemon, and the daemon's events so far."""

    machine: EmulatedMachine
    daemon: Child
    control: QmpClient
    packed: bool
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def look(self) -> list[Mapping[str, Any]]:
        """Return all events so far, the new ones included."""
        self.events += self.daemon.new_events()
        return self.events

    def discarded(self, event: str = "report") -> int:
        """Return the bytes that were given back over one kind of queue so far."""
        return sum(int(one["discarded_bytes"]) for one in self.look() if one["event"] == event)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = RETURN_SECONDS) -> float:
        """Wait until ``condition`` holds; return how long that took, in seconds.

        Raises:
            BalloonError: it did not within ``seconds``, or QEMU or the daemon ended.
        """
        begin = time.monotonic()
        while not condition():
            for child in (self.machine.child, self.daemon):
                if child.ended():
                    raise BalloonError(child.how_it_ended())
            if time.monotonic() - begin > seconds:
                raise BalloonError(f"not within {seconds:.0f} s: {what}")
            time.sleep(_LOOK_SECONDS)
        return time.monotonic() - begin

    def fill(self, size: int = FILLED) -> None:
        """Write a file of ``size`` bytes into the guest's memory."""
        self.machine.agent.run(f"dd if=/dev/zero of=/tmp/fill bs=1M count={size // MIB}")

    def free(self) -> None:
        """Delete what :meth:`fill` wrote."""
        self.machine.agent.run("rm /tmp/fill")

    def settle(self) -> None:
        """With a kernel that clears what it frees, and so has it backed again, wait until that memory is reported."""
        machine = self.machine
        if machine.plan.poison is Poison.ZERO:
            self.wait(
                lambda: machine.resident_bytes() <= machine.plan.memory - machine.free_blocks() + SMALL_BLOCKS,
                "what the kernel cleared is back with the host",
            )

    def check_no_complaint(self) -> None:
        """Raise :class:`BalloonError` if the daemon refused a message or stopped a ring."""
        for event in self.look():
            if event["event"] in ("queue_stopped", "message_refused"):
                raise BalloonError(f"the daemon complained: {event['event']}: {event['reason']}")


def boot(scene: Scene) -> str:
    """The guest's driver takes the device with the wanted ring format and page reporting."""
    begin = time.monotonic()
    release, features = scene.machine.agent.wait_ready()
    if features is None:
        raise BalloonError("the balloon driver found no device")
    if has_feature(features, FeatureBit.RING_PACKED) != scene.packed:
        raise BalloonError("the driver took the other ring format")
    if not has_feature(features, BalloonFeature.PAGE_REPORTING):
        raise BalloonError("the driver does not report pages")
    poison = scene.machine.plan.poison
    if has_feature(features, BalloonFeature.PAGE_POISON) != (poison is not None):
        raise BalloonError("the driver takes PAGE_POISON" if poison is None else "the driver does not take PAGE_POISON")
    [machine] = scene.control.command("query-vms")
    return f"Linux {release} after {time.monotonic() - begin:.0f} s, takes {', '.join(machine['features'])}"


def report(scene: Scene) -> str:
    """Memory that a program frees returns to the host."""
    machine = scene.machine
    scene.settle()
    before = machine.resident_bytes()
    scene.fill()
    grown = machine.resident_bytes() - before  # less than was filled: small free blocks cost the host something already
    if grown < FILLED // 4:
        raise BalloonError("the guest's memory did not grow")
    reported = scene.discarded()
    scene.free()
    seconds = scene.wait(
        lambda: machine.resident_bytes() < before + FILLED // 10 and scene.discarded() >= reported + grown * 9 // 10,
        "what was freed is back with the host",
    )
    scene.check_no_complaint()
    return f"{format_size(grown)} of {format_size(FILLED)} taken and back after {seconds:.1f} s"


def inflate(scene: Scene) -> str:
    """The balloon takes the guest's memory up to a target, and gives it back."""
    machine, control = scene.machine, scene.control
    memory = control.command("query-balloon")["actual"]
    free = machine.meminfo()["MemFree"]
    given = scene.discarded("inflate")
    control.command("balloon", value=memory - INFLATED)
    seconds = scene.wait(lambda: balloon_bytes(scene, memory) == INFLATED, "the balloon has its size")
    scene.wait(lambda: scene.discarded("inflate") >= given + INFLATED, "its pages are the host's")
    less = free - machine.meminfo()["MemFree"]
    if abs(less - INFLATED) > INFLATED // 10:
        raise BalloonError(f"the guest has {format_size(less)} less free memory with {format_size(INFLATED)} inflated")
    control.command("balloon", value=memory)
    back = scene.wait(lambda: balloon_bytes(scene, memory) == 0, "the balloon is empty")
    # No zeros, which a discarded page would hold too. Programs that look at each byte are slow in an emulated guest.
    machine.agent.run(rf"tr '\0' x </dev/zero | head -c {MIB} >/tmp/part")
    machine.agent.run(f"for i in $(seq {FILLED // MIB}); do cat /tmp/part; done >/tmp/fill")
    if machine.agent.run("md5sum </tmp/fill").split()[0] != md5(b"x" * FILLED, usedforsecurity=False).hexdigest():
        raise BalloonError("memory that came out of the balloon does not keep what is written to it")
    machine.agent.run("rm /tmp/part")
    scene.free()
    scene.check_no_complaint()
    return f"{format_size(INFLATED)} in after {seconds:.1f} s, out after {back:.1f} s, keeps what is written to it"


def balloon_bytes(scene: Scene, memory: int) -> int:
    """Return the balloon's size as the driver says it, for a guest that has ``memory`` bytes without a balloon."""
    return memory - int(scene.control.command("query-balloon")["actual"])


def statistics(scene: Scene) -> str:
    """The free memory in the driver's statistics is that of the guest's own kernel."""
    complaint = ""
    for _ in range(ATTEMPTS):
        answer = scene.control.command("query-guest-statistics")["statistics"]
        free = scene.machine.meminfo()["MemFree"]
        error = abs(answer["memfree"] - free) / free
        if error <= 0.02:
            return f"{len(answer)} statistics, free memory {error:.2%} off"
        complaint = f"memfree {answer['memfree']} is {error:.1%} off the guest's {free}"
    raise BalloonError(complaint)


def reclaim(scene: Scene) -> str:
    """All free memory returns on demand, by hinting."""
    machine = scene.machine
    scene.fill()
    scene.free()
    blocks = machine.free_blocks()
    before = machine.resident_bytes()
    answer = scene.control.command("reclaim", method="hint")
    if not answer["complete"] or answer["discarded-bytes"] < 0.9 * blocks:
        raise BalloonError(f"of {format_size(blocks)} in free blocks: {answer}")
    less = before - machine.resident_bytes()
    scene.check_no_complaint()
    return (
        f"{format_size(answer['discarded-bytes'])} of {format_size(blocks)} in {answer['seconds'] * 1000:.0f} ms, "
        f"the guest costs {format_size(less)} less"
    )


def out_of_memory(scene: Scene) -> str:
    """A program that needs more than the balloon has left gets it, and is not killed."""
    machine, control = scene.machine, scene.control
    memory = control.command("query-balloon")["actual"]
    size = (machine.meminfo()["MemFree"] - LEFT) // MIB * MIB
    control.command("balloon", value=memory - size)
    scene.wait(lambda: balloon_bytes(scene, memory) == size, "the balloon has its size")
    machine.agent.run(f"head -c {LEFT * 3 // 2} /dev/zero | tail -c {LEFT * 3 // 2} | wc -c | grep -qx {LEFT * 3 // 2}")
    given = size - balloon_bytes(scene, memory)
    if given <= 0:
        raise BalloonError("the balloon gave nothing, and yet the program had its memory")
    control.command("balloon", value=memory)
    scene.wait(lambda: balloon_bytes(scene, memory) == 0, "the balloon is empty")
    scene.check_no_complaint()
    return f"{format_size(given)} of {format_size(size)} given up for a program"


def driver_again(scene: Scene) -> str:
    """The driver removed and inserted again, and again: each one reports."""
    agent = scene.machine.agent
    for _ in range(INSERTIONS):
        agent.run("rmmod virtio_balloon && insmod /modules/virtio_balloon.ko")
        report(scene)
    return f"{INSERTIONS} times, each reports"


def stop_and_continue(scene: Scene) -> str:
    """Stopping the guest while it reports loses nothing: each ring goes on at the base that it was stopped with."""
    machine = scene.machine
    scene.settle()
    before = machine.resident_bytes()
    scene.fill()
    reported = scene.discarded()
    scene.free()
    scene.wait(lambda: scene.discarded() > reported, "reporting begins")
    for _ in range(STOPS):
        machine.monitor.command("stop")
        machine.monitor.command("cont")
    scene.wait(lambda: machine.resident_bytes() < before + FILLED // 10, "what was freed is back with the host")
    scene.check_no_complaint()
    return f"{STOPS} times in the middle of reports, all {format_size(FILLED)} back; {statistics(scene)}"


def reboot(scene: Scene) -> str:
    """After a reset of the machine the guest's new driver has a new session, and reports."""
    scene.machine.monitor.command("system_reset")
    seen = boot(scene)
    return f"{seen}; then {report(scene)}; {statistics(scene)}"


TRIALS: Final[tuple[tuple[str, Callable[[Scene], str]], ...]] = (
    ("boot", boot),
    ("report", report),
    ("inflate, deflate", inflate),
    ("statistics", statistics),
    ("reclaim", reclaim),
    ("out of memory", out_of_memory),
    ("driver again", driver_again),
    ("stop / cont", stop_and_continue),
    ("reboot", reboot),
)
