"""The options of ``balloon-check hostile``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option, seconds_option, whole_number

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

SESSIONS: Final = 1000
ALONE_SECONDS: Final = 5.0
ALONE_MAX: Final = 3600.0

EXAMPLES: Final = """examples:
  balloon-check hostile
  balloon-check hostile --sessions 10000 --seed 7 --json hostile.json
  balloon-check hostile --seed 7 --only 1234 --sessions 50
  balloon-check hostile --socket-path /tmp/balloon.sock
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--sessions",
        metavar="N",
        type=whole_number(1),
        help=f"how many hostile sessions (default: {SESSIONS}; with --only 1)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=option_type(int), default=1, help="the same seed, the same sessions (default: 1)"
    )
    parser.add_argument(
        "--only", metavar="N", type=whole_number(1), help="play session N of the seed alone, --sessions times"
    )
    parser.add_argument(
        "--socket-path",
        metavar="PATH",
        type=option_type(path_option),
        help="the socket of a daemon that runs (default: one is started)",
    )
    parser.add_argument(
        "--alone",
        metavar="S",
        type=seconds_option(ALONE_MAX),
        default=ALONE_SECONDS,
        help="seconds that the good machine is measured alone before the first session (default: %(default)g)",
    )
    parser.add_argument("--list", action="store_true", help="list the sessions that would be played, and end")
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON to PATH, - for standard output")
