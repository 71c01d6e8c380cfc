"""The options of ``balloon-check personalities``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from host.balloon.personality import PERSONALITIES

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

EXAMPLES: Final = """examples:
  balloon-check personalities
  balloon-check personalities --personality qemu --json -
  balloon-check personalities --qemu
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--personality",
        choices=tuple(PERSONALITIES),
        metavar="NAME",
        action="append",
        help=f"only this personality (repeatable; default: all): {', '.join(PERSONALITIES)}",
    )
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        nargs="?",
        const="qemu-system-x86_64",
        help="a column for the balloon in QEMU itself, which is started for it with all features (default: %(const)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON to FILE, - for standard output")
