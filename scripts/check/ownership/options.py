"""The options of ``balloon-check ownership``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option, whole_number

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

RUNS: Final = 200
STEPS: Final = 300
COUNT_MAX: Final = 100_000_000
SEED_MAX: Final = (1 << 64) - 1
ALL: Final = "all"

EXAMPLES: Final = """examples:
  balloon-check ownership
  balloon-check ownership --seed 1000 --runs 5000
  balloon-check ownership --fault stop-not-awaited --save late.script
  balloon-check ownership --replay late.script
  balloon-check ownership --fault all
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    path = option_type(path_option)
    count = whole_number(1, COUNT_MAX)
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(0, SEED_MAX), default=1, help="the first seed (default: 1)"
    )
    parser.add_argument(
        "--runs",
        metavar="N",
        type=count,
        default=RUNS,
        help=f"seeds to try, until one ends in a violation (default: {RUNS})",
    )
    parser.add_argument("--steps", metavar="N", type=count, default=STEPS, help=f"steps of a run (default: {STEPS})")
    parser.add_argument(
        "--fault", metavar="NAME", help="put this fault in; `all` tries each and succeeds if each is found (see --list)"
    )
    parser.add_argument("--save", metavar="FILE", type=path, help="write the shrunk script of a violation to FILE")
    parser.add_argument("--replay", metavar="FILE", type=path, help="run the script in FILE instead of seeds")
    parser.add_argument("--list", action="store_true", help="list the faults, and the races that each has to end in")
    parser.add_argument("--json", metavar="FILE", help="write what was found as JSON to FILE, - for standard output")
