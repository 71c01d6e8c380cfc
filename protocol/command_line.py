"""What the command lines of all processes have in common: one-line errors, sizes, the version.

Must not know: any particular option.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import metadata
from typing import NoReturn, TypeVar

from protocol.errors import BalloonError, UsageError

DISTRIBUTION = "vhost-user-balloon"

Value = TypeVar("Value")


def version() -> str:
    """Return the installed version, or ``"(checkout)"`` when run without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(checkout)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and that has ``--version``. Abbreviated options are refused: a
    script that uses one breaks when a longer name is added."""

    def __init__(self, *, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {version()}")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def option_type(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return ``parse`` as the ``type`` of an option: its :class:`UsageError` and ValueError become the complaint."""

    def parse_option(text: str) -> Value:
        try:
            return parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"not a number: {text!r}") from error

    return parse_option


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit status; an error of ours becomes one line and status 2 (usage) or 1.

    A closed standard output and Ctrl-C are no errors: they end the program quietly with the status a shell expects.
    """
    try:
        return command()
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BalloonError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the interpreter flushes standard output once more at its end, and would complain here
        return 141
    except KeyboardInterrupt:
        return 130
