"""The options of ``balloon-check device``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option
from scripts.check.judge import add_report_options
from scripts.check.recording.options import add_record_option

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES: Final = """examples:
  balloon-check device --socket-path /tmp/balloon.sock
  balloon-check device --socket-path /tmp/balloon.sock --quick --json r.json
  balloon-check device --socket-path /tmp/balloon.sock 'report-*' S-17
  balloon-check device --socket-path /tmp/balloon.sock report-exact \\
      --record /tmp/session
  balloon-check device --qemu
  balloon-check device --coverage
  balloon-check device --generic --socket-path /tmp/blk.sock
  balloon-check device --generic --socket-path /tmp/fs.sock \\
      --start 'virtiofsd --socket-path=/tmp/fs.sock'
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    path = option_type(path_option)
    parser.add_argument("--socket-path", metavar="PATH", type=path, help="the socket of a vhost-user back-end")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        nargs="?",
        const="qemu-system-x86_64",
        help="the balloon in QEMU itself, which is started for it (default: %(const)s)",
    )
    parser.add_argument(
        "--generic",
        action="store_true",
        help="only what is vhost-user's own: the cases of a back-end for a device of any type",
    )
    parser.add_argument(
        "--start",
        metavar="COMMAND",
        help="with --generic: the command that makes the back-end listen, run again when it has ended",
    )
    parser.add_argument(
        "--qmp",
        metavar="PATH",
        type=path,
        help="the back-end's control socket, where it takes QMP: for the cases that ask for a balloon",
    )
    parser.add_argument("--ring", choices=("split", "packed"), help="only cases of this ring format (default: both)")
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="list each clause, edge case, and case of another suite with the cases that exercise it, or why none does",
    )
    add_record_option(parser, "the sessions of the cases")
    add_report_options(parser, quick=True)
