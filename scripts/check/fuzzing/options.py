"""The options of ``balloon-check fuzz``, which need nothing but Python itself."""

from typing import TYPE_CHECKING, Final

from protocol.process.command_line import option_type, path_option, seconds_option, whole_number

if TYPE_CHECKING:
    from protocol.process.command_line import Parser

NAMES: Final = (
    "chain",
    "codec",
    "config",
    "control",
    "discard-plan",
    "indirect-table",
    "packed-ring",
    "split-ring",
    "statistics",
)
"""The targets."""

RUNS: Final = 10_000
SECONDS_MAX: Final = 7 * 86400

EXAMPLES: Final = """examples:
  balloon-check fuzz
  balloon-check fuzz codec split-ring --runs 1000000 --seed 7
  balloon-check fuzz packed-ring --coverage --seconds 600 --corpus /tmp/inputs
  balloon-check fuzz codec --input fuzz-codec-0123abcd.bin
"""


def add_to(parser: "Parser") -> None:
    """Add the options of the command."""
    path = option_type(path_option)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"what to fuzz (default: all): {', '.join(NAMES)}")
    parser.add_argument(
        "--runs",
        metavar="N",
        type=whole_number(1),
        help=f"inputs of each target (default: {RUNS}, or by --seconds)",
    )
    parser.add_argument(
        "--seconds", metavar="S", type=seconds_option(SECONDS_MAX), help="seconds of each target at most"
    )
    parser.add_argument(
        "--seed", metavar="N", type=option_type(int), default=1, help="the same seed, the same inputs (default: 1)"
    )
    parser.add_argument(
        "--corpus",
        metavar="DIR",
        type=path,
        help="one target: begin with the files of this directory; with --coverage what is found is added to it",
    )
    parser.add_argument(
        "--coverage", action="store_true", help="let coverage guide the inputs; needs the package atheris"
    )
    parser.add_argument(
        "--input", metavar="FILE", type=path, help="one target: run this one input and show what it does"
    )
    parser.add_argument(
        "--save",
        metavar="DIR",
        type=path,
        default=path_option("."),
        help="where an input that finds a fault is written",
    )
    parser.add_argument("--list", action="store_true", help="list the targets and what each holds to")
