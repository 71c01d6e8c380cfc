"""``scripts/package``: the command line."""

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.process.command_line import Parser, option_type, path_option, run_command
from scripts.packaging.debian_package import build_package, write_completion, write_manual_pages

PROGRAM: Final = "scripts/package"
CHECKOUT: Final = Path(__file__).resolve().parents[2]

_EPILOG: Final = """\
examples:
  scripts/package
  apt install ./dist/vhost-user-balloon_0.1.0_all.deb     (as root)
  scripts/package --man /tmp/man && man /tmp/man/balloonctl.1
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Builds a Debian package of the daemon, balloonctl and balloon-policy from this checkout.",
        epilog=_EPILOG,
    )
    folder = option_type(path_option)
    parser.add_argument(
        "--output", metavar="DIR", type=folder, default=CHECKOUT / "dist", help="write the package to DIR (dist)"
    )
    parser.add_argument("--man", metavar="DIR", type=folder, help="write manual pages to DIR, and build no package")
    parser.add_argument(
        "--completion", metavar="DIR", type=folder, help="write completion for bash to DIR, and build no package"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    if arguments.man is not None:
        write_manual_pages(arguments.man, version)
    if arguments.completion is not None:
        write_completion(arguments.completion)
    if arguments.man is None and arguments.completion is None:
        with tempfile.TemporaryDirectory() as scratch:
            print(build_package(CHECKOUT, arguments.output, version, Path(scratch)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is asked for; return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
