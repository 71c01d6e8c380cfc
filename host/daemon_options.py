"""How the daemon was asked to run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.configuration.vm_socket import VmSocket
from host.metrics.address import MetricsAddress
from protocol.process.listening_socket import OWNER_ALONE, SocketAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """How the daemon was asked to run.

    ``fd`` is an inherited socket, where guests have ``device``, None without one. Guests also connect to ``sockets``,
    each with a device of its own. ``reload`` returns the sockets as they are asked for at present, and raises
    BalloonError; it is None if that cannot change. ``control_path`` is the path of the control socket, None without
    one. ``name_from`` says whether a guest whose socket has no name is called after its process (``pid``), its
    ``cgroup`` or the ``socket``. ``metrics`` is where metrics are served, None for nowhere. ``log_format`` is one of
    :data:`protocol.process.log_lines.FORMATS`; with ``syslog`` the system's log has the lines instead.
    """

    sockets: tuple[VmSocket, ...] = ()
    fd: int | None = None
    device: DeviceOptions = DEFAULT_DEVICE
    reload: Callable[[], Sequence[VmSocket]] | None = None
    control_path: Path | None = None
    name_from: str = "pid"
    control_access: SocketAccess = OWNER_ALONE
    metrics: MetricsAddress | None = None
    log_format: str = "auto"
    syslog: bool = False
