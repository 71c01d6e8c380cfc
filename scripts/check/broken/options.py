"""The options of ``balloon-check broken``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES: Final = """examples:
  balloon-check broken --list
  balloon-check broken one-page-too-many acknowledged-first
  balloon-check broken reported-twice statistics-never
  balloon-check broken --serve one-page-too-many --socket-path /tmp/broken.sock
  balloon-check broken --drive statistics-never --socket-path /tmp/check.sock
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="the faults to try (default: all)")
    parser.add_argument("--list", action="store_true", help="list the faults and the cases that have to catch each")
    parser.add_argument("--serve", metavar="FAULT", help="be the daemon with this fault, at --socket-path")
    parser.add_argument("--drive", metavar="FAULT", help="be the guest whose driver has this fault, at --socket-path")
    parser.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="the socket of --serve or --drive"
    )
