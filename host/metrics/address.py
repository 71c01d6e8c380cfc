"""Where metrics are served: ``ADDR:PORT``, or ``unix:PATH``."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UsageError
from protocol.process.command_line import option_type

EXAMPLES = "127.0.0.1:9377, [::1]:9377 or unix:/run/balloon-metrics"


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """A TCP address, or the path of a unix socket, which counts if there is one."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_metrics_address(text: str) -> MetricsAddress:
    """Return the address that ``text`` means. Raises :class:`UsageError` if it is none."""
    if text.startswith("unix:"):
        if not (path := text.removeprefix("unix:")):
            raise UsageError(f"no path after unix: (write {EXAMPLES})")
        return MetricsAddress(path=Path(path))
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not bare or (":" in bare and not bracketed):
        raise UsageError(f"not ADDR:PORT or unix:PATH: {text!r} (write {EXAMPLES})")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise UsageError(f"not a port from 0 to 65535: {port!r}")
    return MetricsAddress(bare, int(port))


def add_metrics_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--metrics`` to a command line."""
    group.add_argument(
        "--metrics",
        metavar="ADDR:PORT|unix:PATH",
        type=option_type(parse_metrics_address),
        help="serve metrics to Prometheus there, below /metrics",
    )
