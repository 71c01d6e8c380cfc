"""The sockets that the daemon was asked for, with the file of ``--config`` as it is at each reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.configuration.config_file import load_sockets
from host.configuration.vm_option import read_vm_options
from host.configuration.vm_socket import SOCKET_PATH, Gathered, SocketDefaults, VmSocket, conflicts


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedSockets:
    """``socket_path`` and ``config`` are None without these options, ``vms`` has the values of each ``--vm``.
    ``control`` is the path of the control socket."""

    socket_path: Path | None
    vms: Sequence[Mapping[str, Any]]
    config: Path | None
    control: Path | None
    defaults: SocketDefaults

    def read(self) -> tuple[VmSocket, ...]:
        """Return all sockets.

        Raises:
            Mistakes: several, a line for each.
            BalloonError: the file cannot be read, or one mistake.
        """
        sockets: tuple[VmSocket, ...] = ()
        if self.socket_path is not None:
            device = self.defaults.settings.options("", self.socket_path)
            access = self.defaults.access(None, None)
            sockets += (VmSocket(path=self.socket_path, device=device, access=access, place=SOCKET_PATH),)
        sockets += read_vm_options(self.vms, self.defaults)
        if self.config is not None:
            sockets += load_sockets(self.config, self.defaults)
        mistakes = Gathered()
        mistakes.add(*conflicts(sockets, self.control))
        mistakes.check()
        return sockets
