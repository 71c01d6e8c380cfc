"""The objects and properties that tools made for QEMU read and write: the balloons below ``/machine/peripheral``.

Source: QEMU's "Virtio balloon memory statistics" and its QAPI reference, ``qom-list``, ``qom-get``, ``qom-set``.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from host.balloon.balloon_statistics import STATISTICS_INTERVAL_MAX
from host.control.vm_interface import VmInterface
from host.qmp.qmp import ErrorClass, QmpError, shown
from protocol.balloon_statistics import StatisticTag

GUEST_STATS: Final = "guest-stats"
POLLING_INTERVAL: Final = "guest-stats-polling-interval"

UNKNOWN: Final = (1 << 64) - 1
"""The value of a statistic that the guest did not give: -1 in 64 bits, as in QEMU."""

STAT_NAMES: Final[Mapping[StatisticTag, str]] = {
    StatisticTag.SWAP_IN: "stat-swap-in",
    StatisticTag.SWAP_OUT: "stat-swap-out",
    StatisticTag.MAJFLT: "stat-major-faults",
    StatisticTag.MINFLT: "stat-minor-faults",
    StatisticTag.MEMFREE: "stat-free-memory",
    StatisticTag.MEMTOT: "stat-total-memory",
    StatisticTag.AVAIL: "stat-available-memory",
    StatisticTag.CACHES: "stat-disk-caches",
    StatisticTag.HTLB_PGALLOC: "stat-htlb-pgalloc",
    StatisticTag.HTLB_PGFAIL: "stat-htlb-pgfail",
    StatisticTag.OOM_KILL: "stat-oom-kills",
    StatisticTag.ALLOC_STALL: "stat-alloc-stalls",
    StatisticTag.ASYNC_SCAN: "stat-async-scans",
    StatisticTag.DIRECT_SCAN: "stat-direct-scans",
    StatisticTag.ASYNC_RECLAIM: "stat-async-reclaims",
    StatisticTag.DIRECT_RECLAIM: "stat-direct-reclaims",
}
"""The names of the statistics in QEMU."""

_PERIPHERAL: Final = "/machine/peripheral"
_TYPE: Final = "virtio-balloon-device"
_PROPERTIES: Final = {"type": "string", GUEST_STATS: "guest statistics", POLLING_INTERVAL: "int"}


class ObjectTree:
    """Lists objects, and reads and writes their properties. Methods raise :class:`QmpError` for an unknown one."""

    def __init__(self, vms: Mapping[int, VmInterface], now: Callable[[], float]) -> None:
        self._vms = vms
        self._now = now

    def properties(self, path: str) -> list[dict[str, str]]:
        """Return name and type of everything at ``path``."""
        match path.rstrip("/"):
            case "":
                found = {"machine": "child<container>"}
            case "/machine":
                found = {"peripheral": "child<container>"}
            case "/machine/peripheral":
                found = {f"vm{number}": f"child<{_TYPE}>" for number in sorted(self._vms)}
            case _:
                self._vm(path)
                found = _PROPERTIES
        return [{"name": name, "type": kind} for name, kind in found.items()]

    def get(self, path: str, name: str) -> object:
        """Return the value of one property."""
        control = self._vm(path)
        match name:
            case "type":
                return _TYPE
            case "guest-stats":
                return self._guest_stats(control)
            case "guest-stats-polling-interval":
                return int(control.statistics_interval)
        raise QmpError(f"{path} has no property {shown(name)}")

    def set(self, path: str, name: str, value: Any) -> None:
        """Write one property."""
        control = self._vm(path)
        if name not in _PROPERTIES:
            raise QmpError(f"{path} has no property {shown(name)}")
        if name != POLLING_INTERVAL:
            raise QmpError(f"the property '{name}' cannot be written")
        if type(value) is not int or not 0 <= value <= STATISTICS_INTERVAL_MAX:
            raise QmpError(f"'{name}' has to be an integer from 0 to {STATISTICS_INTERVAL_MAX}, in seconds")
        control.set_statistics_interval(value)

    def _vm(self, path: str) -> VmInterface:
        parent, _, name = path.rstrip("/").rpartition("/")
        number = name.removeprefix("vm")
        if parent == _PERIPHERAL and name.startswith("vm") and number.isascii() and number.isdecimal():
            control = self._vms.get(int(number)) if len(number) < 20 else None
            if control is not None and name == f"vm{int(number)}":
                return control
        raise QmpError(f"unknown object {shown(path)}", ErrorClass.DEVICE_NOT_FOUND)

    def _guest_stats(self, control: VmInterface) -> dict[str, object]:
        last = control.last_statistics
        values = {} if last is None else last.values
        stats = {name: values.get(tag.name.lower(), UNKNOWN) for tag, name in STAT_NAMES.items()}
        return {"stats": stats, "last-update": 0 if last is None else int(self._now() - last.age)}
