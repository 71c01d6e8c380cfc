"""The trials with a guest whose free pages hold a pattern: everything is acknowledged, and no page is discarded.

The guest's kernel looks for the pattern when it takes a page from its free list; what it finds instead is in its log.
Source: virtio 1.2, 5.5.6.7.2."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from host.qmp.qmp_client import CommandError
from protocol.errors import BalloonError
from protocol.units import MIB, format_size
from scripts.emulator.trials import FILLED, INFLATED, INSERTIONS, Scene, balloon_bytes, boot, statistics

_SLACK: Final = 4 * MIB
"""How much less a guest's memory may cost although none of it was discarded: other pages than its RAM come and go."""


def kept_bytes(events: Iterable[Mapping[str, Any]], queue: str) -> int:
    """Return the bytes that were acknowledged over one kind of queue and kept, by the daemon's events.

    Raises:
        BalloonError: a page was discarded, over any queue, or kept for another reason than the pattern.
    """
    kept = 0
    for event in events:
        if event.get("discarded_bytes"):
            raise BalloonError(f"{event['discarded_bytes']} bytes discarded over {event['event']}")
        if event["event"] == "refused" and event["reason"] != "poison":
            raise BalloonError(f"{event['bytes']} bytes refused: {event['reason']}")
        if event["event"] == queue:
            kept += int(event["refused_bytes"])
    return kept


def report(scene: Scene) -> str:
    """Memory that a program frees is reported, and stays."""
    machine = scene.machine
    scene.fill()
    before, kept = machine.resident_bytes(), kept_bytes(scene.look(), "report")
    scene.free()
    seconds = scene.wait(
        lambda: kept_bytes(scene.look(), "report") >= kept + FILLED * 9 // 10, "what was freed is reported"
    )
    less = before - machine.resident_bytes()
    if less > _SLACK:
        raise BalloonError(f"the guest costs {format_size(less)} less")
    scene.check_no_complaint()
    return f"{format_size(FILLED)} acknowledged and kept after {seconds:.1f} s"


def inflate(scene: Scene) -> str:
    """The balloon takes the guest's memory up to a target, its pages stay, and it gives them back."""
    control = scene.control
    memory = control.command("query-balloon")["actual"]
    kept = kept_bytes(scene.look(), "inflate")
    control.command("balloon", value=memory - INFLATED)
    scene.wait(lambda: balloon_bytes(scene, memory) == INFLATED, "the balloon has its size")
    scene.wait(lambda: kept_bytes(scene.look(), "inflate") >= kept + INFLATED, "its pages are acknowledged")
    control.command("balloon", value=memory)
    scene.wait(lambda: balloon_bytes(scene, memory) == 0, "the balloon is empty")
    scene.check_no_complaint()
    return f"{format_size(INFLATED)} in and out, all kept"


def reclaim(scene: Scene) -> str:
    """The daemon refuses to reclaim memory, says why, and asks the guest for nothing."""
    try:
        answer = scene.control.command("reclaim", method="hint")
    except CommandError as error:
        if "poison" not in str(error):
            raise
        return "refused, with the pattern as the reason"
    raise BalloonError(f"not refused: {answer}")


def driver_again(scene: Scene) -> str:
    """The driver removed and inserted again: each time the pattern is the one that the new driver sets."""
    for _ in range(INSERTIONS):
        scene.machine.agent.run("rmmod virtio_balloon && insmod /modules/virtio_balloon.ko")
        report(scene)
    return f"{INSERTIONS} times, each reports, all kept"


def reboot(scene: Scene) -> str:
    """After a reset of the machine the new driver sets its pattern again."""
    scene.machine.monitor.command("system_reset")
    return f"{boot(scene)}; then {report(scene)}; {statistics(scene)}"


PATTERN_TRIALS: Final[tuple[tuple[str, Callable[[Scene], str]], ...]] = (
    ("boot", boot),
    ("report", report),
    ("inflate, deflate", inflate),
    ("statistics", statistics),
    ("reclaim", reclaim),
    ("driver again", driver_again),
    ("reboot", reboot),
)
"""Replaces :data:`scripts.emulator.trials.TRIALS` for a guest that fills its free pages with a pattern."""
