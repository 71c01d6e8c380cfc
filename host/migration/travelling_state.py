"""A device's state, gathered where it is kept before the virtual machine moves, and put back there afterwards."""

from dataclasses import fields, replace
from typing import Final

from host.balloon.free_page_hinting import COMMAND_ID_DONE
from host.balloon.virtio_balloon import VirtioBalloon
from host.control.vm_control import VmControl
from host.events.metrics import VmMetrics
from host.migration.device_state import STATISTICS_INTERVAL_MIN, DeviceState

_COUNTERS: Final = tuple(field.name for field in fields(VmMetrics) if field.type is int)
_REFUSED: Final = "refused_"
"""Prefix of the names of the counters of refused ranges; the reason follows."""


def build_state(balloon: VirtioBalloon, control: VmControl, metrics: VmMetrics) -> DeviceState:
    """Return the state as it is now. No ring may run."""
    counters = {name: int(getattr(metrics, name)) for name in _COUNTERS}
    interval = control.statistics_interval
    return DeviceState(
        num_pages=control.size.target_pages,
        actual=balloon.config.actual,
        poison_val=balloon.config.poison_val if balloon.poison_told else None,
        last_command_id=balloon.hinting.last_id if balloon.hinting.issued else COMMAND_ID_DONE,
        statistics_interval=max(interval, STATISTICS_INTERVAL_MIN) if interval else 0.0,
        counters=counters | {_REFUSED + reason: number for reason, number in metrics.refused.items()},
    )


def restore_state(state: DeviceState, balloon: VirtioBalloon, control: VmControl, metrics: VmMetrics) -> None:
    """Go on from ``state``. No ring may run.

    Statistics that came before are not those of the machine that is loaded, and a reclaim under way ends.
    A round of hinting of the source is over: the driver is shown DONE, and the next round gets a new id.
    """
    control.driver_left()
    balloon.parts.forget()
    hinting = balloon.hinting
    if state.last_command_id == COMMAND_ID_DONE:
        hinting.reset()
    else:
        hinting.follow(state.last_command_id)
    balloon.config = replace(
        balloon.config,
        num_pages=state.num_pages,
        actual=state.actual,
        free_page_hint_cmd_id=hinting.command_id,
        poison_val=state.poison_val or 0,
    )
    balloon.poison_told = state.poison_val is not None
    control.size.resume(state.num_pages, state.actual)
    control.set_statistics_interval(state.statistics_interval)
    for name, number in state.counters.items():
        if name in _COUNTERS:
            setattr(metrics, name, number)
        elif name.startswith(_REFUSED):
            metrics.refused[name.removeprefix(_REFUSED)] = number
    control.notices.caught_up()
