"""The options of ``balloon-check driver``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option
from scripts.check.judge import add_report_options
from scripts.check.recording.options import add_record_option

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES: Final = """examples:
  balloon-check driver --socket-path /tmp/check.sock
  balloon-check driver --socket-path /tmp/check.sock --seconds 20 \\
      --start 'balloon-linux --socket-path /tmp/check.sock -- sleep 60'
  balloon-check driver --socket-path /tmp/check.sock \\
      --misbehave every-second-interrupt
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="where the device listens for the driver"
    )
    parser.add_argument("--start", metavar="COMMAND", help="a command that brings the driver, ended afterwards")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=20.0, help="how long the driver is watched (default: %(default)g)"
    )
    parser.add_argument(
        "--attach-seconds",
        metavar="S",
        type=float,
        default=60.0,
        help="how long a driver is waited for (default: %(default)g)",
    )
    parser.add_argument(
        "--features",
        metavar="NAME=on|off,...",
        help="what the device offers, in the daemon's words (default: all that no draft defines)",
    )
    parser.add_argument(
        "--in-band", action="store_true", help="offer kicks and interrupts as messages (default: by descriptors alone)"
    )
    parser.add_argument(
        "--misbehave", metavar="FAULT", help="be a device with this fault, to see what the driver does (see broken)"
    )
    add_record_option(parser, "the driver's sessions")
    add_report_options(parser, quick=False)
