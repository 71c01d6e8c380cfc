"""The facts about one virtual machine: values alone, while :mod:`host.control.vm_control` acts on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from host.vhost_user.device_setup import DeviceSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    """What is known of one virtual machine.

    ``memory_bytes`` is the sum of its memory regions, ``guest_bytes`` how much of that is taken for its RAM.
    ``num_pages`` is the size that its balloon should have, ``target_pages`` the size that was asked for, which its
    memory may bound, and ``actual`` the size that the driver says it has, in 4096-byte pages. ``features`` are the
    negotiated feature bits. ``driver_ready`` says that a driver is at work, and ``setup`` how it has set the device up.
    ``name`` is for display, ``age`` the session's in seconds. The counters are sums since it began, sizes are
    bytes, ``refused`` counts ranges by reason. ``last_report`` is the age of the last report in seconds, None without.
    """

    pid: int
    name: str
    age: float
    memory_bytes: int
    guest_bytes: int
    num_pages: int
    target_pages: int
    actual: int
    features: int
    driver_ready: bool
    setup: DeviceSetup
    reports: int = 0
    reported_bytes: int = 0
    discarded_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    last_report: float | None = None
