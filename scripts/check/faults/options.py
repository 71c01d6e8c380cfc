"""The options of ``balloon-check proxy``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option, whole_number
from scripts.check.recording.options import add_record_option

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

SEED_MAX: Final = (1 << 64) - 1

EXAMPLES: Final = """examples:
  balloon-check proxy --listen /tmp/proxy.sock --connect /tmp/balloon.sock \\
      --events -
  balloon-check proxy --listen /tmp/proxy.sock --connect /tmp/balloon.sock \\
      --script lost-kick
  balloon-check proxy --list

exit status: 0 after SIGTERM or Ctrl-C, 1 if the socket cannot be listened on, 2 for a wrong option or a mistake in the
script, 3 if the back-end cannot be reached
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    path = option_type(path_option)
    parser.add_argument("--listen", metavar="PATH", type=path, help="where front-ends connect")
    parser.add_argument("--connect", metavar="PATH", type=path, help="the back-end's socket")
    parser.add_argument(
        "--script",
        metavar="FILE",
        type=path,
        help="the faults: a file, or the name of a script that comes with the program (default: none, pass everything)",
    )
    parser.add_argument("--seed", metavar="N", type=whole_number(0, SEED_MAX), help="replaces the script's seed")
    parser.add_argument("--events", metavar="PATH", help="append events to PATH as JSON, - for standard output")
    add_record_option(parser, "all sessions, as they were after the faults,")
    parser.add_argument("--list", action="store_true", help="list the scripts that come with the program, and exit")
