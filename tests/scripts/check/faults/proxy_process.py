"""The proxy as a process."""

from pathlib import Path
from typing import Self

from tests.harness.processes import ProgramProcess


class ProxyProcess(ProgramProcess):
    """``balloon-check proxy`` between ``target`` and a socket of its own."""

    def __init__(self, directory: Path, target: Path, *options: str) -> None:
        self.socket_path = directory / "proxy.sock"
        places = ("--listen", str(self.socket_path), "--connect", str(target))
        super().__init__("scripts.check", *places, *options, command=("proxy",))
        self.events.wait("listening")

    def __enter__(self) -> Self:
        return self
