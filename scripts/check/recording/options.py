"""The options of ``balloon-check explain``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option

if TYPE_CHECKING:
    from argparse import ArgumentParser

LISTED_MAX: Final = 40
"""Most descriptors of one chain that are listed; ``--all`` lists them all."""

EXAMPLES: Final = """examples:
  vhost-user-balloon --socket-path /tmp/balloon.sock --record /tmp/session
  balloon-check explain /tmp/session --faults
  balloon-check explain /tmp/session --pcapng session.pcapng --dissector vub.lua
  tshark -X lua_script:vub.lua -r session.pcapng
"""


def add_record_option(parser: "ArgumentParser", what: str) -> None:
    """Add ``--record FILE`` to a command of which ``what`` is recorded."""
    parser.add_argument(
        "--record",
        metavar="FILE",
        type=option_type(path_option),
        help=f"append {what} to FILE, message by message and chain by chain, for balloon-check explain",
    )


def add_to(parser: "ArgumentParser") -> None:
    """Add the options of the command."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=option_type(path_option), help="what --record FILE has written"
    )
    parser.add_argument("--session", metavar="N", type=int, help="only session N, the machine's number in the events")
    parser.add_argument("--all", action="store_true", help=f"list more than {LISTED_MAX} descriptors of a chain")
    parser.add_argument("--faults", action="store_true", help="print what went wrong alone")
    parser.add_argument("--json", action="store_true", help="one JSON object a record, and one for each session")
    parser.add_argument(
        "--pcapng", metavar="OUT", type=option_type(path_option), help="write the recording for Wireshark to OUT"
    )
    parser.add_argument(
        "--dissector", metavar="OUT", type=option_type(path_option), help="write the dissector for Wireshark to OUT"
    )
