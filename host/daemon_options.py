"""How the daemon was asked to run."""

from dataclasses import dataclass
from pathlib import Path

from host.balloon.personality import OURS, Personality
from host.control.guest_ram import RESERVE_BYTES
from host.metrics.address import MetricsAddress
from host.vhost_user.queue_numbers import AUTO
from protocol.process.listening_socket import BY_UMASK, OWNER_ALONE, SocketAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """How the daemon was asked to run. Exactly one of ``socket_path`` and ``fd`` is given.

    ``queue_numbers`` is one of :data:`host.vhost_user.queue_numbers.CHOICES`. ``in_band`` offers notifications as
    messages. ``control_path`` is the path of the control socket, None without one. Statistics are requested every
    ``statistics_interval`` seconds, or for 0 only on demand. ``name_from`` says whether a guest has the name of its
    process (``pid``), its ``cgroup`` or the ``socket``. ``guest_memory`` is the memory of each guest in bytes, 0 if
    that is not stated, and ``guest_reserve`` the bytes that its balloon leaves it at least. ``personality`` has the
    habits of the device, apart from its features and queue numbers, which are options of their own. ``metrics`` is
    where metrics are served, None for nowhere. ``log_format`` is one of :data:`protocol.process.log_lines.FORMATS`.
    """

    socket_path: Path | None
    fd: int | None
    features: int
    discard: bool
    balloon_pages: int
    queue_numbers: str = AUTO
    in_band: bool = False
    control_path: Path | None = None
    statistics_interval: int = 0
    name_from: str = "pid"
    guest_memory: int = 0
    guest_reserve: int = RESERVE_BYTES
    socket_access: SocketAccess = BY_UMASK
    control_access: SocketAccess = OWNER_ALONE
    personality: Personality = OURS
    metrics: MetricsAddress | None = None
    log_format: str = "auto"
