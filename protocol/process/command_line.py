"""The common part of all command lines: the parser, one-line errors, the version."""

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TypeVar

from protocol.errors import BalloonError, UsageError

DISTRIBUTION = "vhost-user-balloon"

_TYPED = os.environ.pop("VHOST_USER_BALLOON_TYPED", None)
"""What the user typed to start this program, where a script in between knows it. Children have names of their own."""

Value = TypeVar("Value")


def _typed(program: str) -> str:
    # The words after the program's name, `run` of `balloon-lab run`, were typed as they are.
    return program if _TYPED is None else " ".join([_TYPED, *program.split()[1:]])


_INSTALLED = re.compile(rf"{DISTRIBUTION.replace('-', '_')}-(?P<version>.+)\.dist-info")


@cache
def version() -> str:
    """Return the installed version, or ``"(checkout)"`` when run without being installed.

    Source: "Recording installed projects" of the Python Packaging Authority. The directory's name is enough;
    ``importlib.metadata`` takes a good part of the daemon's start to load.
    """
    for place in sys.path:
        with suppress(OSError):  # not a directory
            for name in os.listdir(place or "."):
                if (installed := _INSTALLED.fullmatch(name)) is not None:
                    return installed["version"]
    return "(checkout)"


class _Version(argparse.Action):
    # Looks the version up when it is asked for: that reads every directory of installed packages.

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        del namespace, values, option_string
        print(f"{parser.prog} {version()}")
        parser.exit()


class _HelpFormatter(argparse.HelpFormatter):
    # Fills prose to the terminal's width; a line that begins with a space is a line of a table or an example.

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled: list[str] = []
        prose = False  # whether the last line goes on
        for line in text.splitlines():
            is_prose = bool(line) and not line[0].isspace()
            if is_prose and prose and not line.endswith(":"):
                filled[-1] += f" {line}"
            else:
                filled.append(line)
            prose = is_prose and not line.endswith((".", ":"))
        return "\n".join(
            indent + line if not line or line[0].isspace() else textwrap.fill(line, width, break_on_hyphens=False)
            for line in filled
        )


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors and ``--version``. Abbreviated options are refused: a script that uses
    one breaks when a second option with that beginning is added."""

    def __init__(
        self, *, prog: str, description: str, epilog: str, usage: str | None = None, color: bool = True
    ) -> None:
        if sys.version_info >= (3, 14):
            self.color = color  # what Python passes on to a sub-command's parser
        super().__init__(
            prog=_typed(prog),
            description=description,
            epilog=epilog,
            usage=usage,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--version",
            action=_Version,
            nargs=0,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help="show program's version number and exit",
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        from protocol.process.log_lines import error_line

        self.exit(2, error_line(f"{message} (see {self.prog} --help)", self.prog) + "\n")


def option_type(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return ``parse`` as the ``type`` of an option: its :class:`UsageError` and ValueError become the error
    message."""

    def parse_option(text: str) -> Value:
        try:
            return parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"not a number: {text!r}") from error

    return parse_option


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the ``type`` of an option that takes a whole number from ``least`` to ``most``, or from ``least`` on."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least or (most is not None and number > most):
            raise UsageError(f"{text} is not from {least} " + ("on" if most is None else f"to {most}"))
        return number

    return option_type(parse)


def seconds_option(most: float) -> Callable[[str], float]:
    """Return the ``type`` of an option that takes seconds, above 0 and at most ``most``."""

    def parse(text: str) -> float:
        number = float(text)
        if not 0 < number <= most:
            raise UsageError(f"{text} is not above 0 and at most {most:g} seconds")
        return number

    return option_type(parse)


def path_option(text: str) -> Path:
    """Return ``text`` as a path. Raises :class:`UsageError` for the empty string, which ``Path`` takes for the current
    directory."""
    if not text:
        raise UsageError("an empty path")
    return Path(text)


def run_command(
    program: str, command: Callable[[], int], *, statuses: Mapping[type[BalloonError], int] = MappingProxyType({})
) -> int:
    """Run ``command`` and return its exit status; a :class:`BalloonError` or OSError becomes one line and status 2
    (usage), that of ``statuses`` for its type, or 1.

    A closed standard output and Ctrl-C end the program without a message, with the status that a shell expects.
    """
    if sys.stderr is None:  # closed: what print() is given to write there would go to standard output
        sys.stderr = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process's life
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        status = command()
        if sys.stdout is not None:
            with errors_of_standard_output():
                sys.stdout.flush()  # now, since a full disk would be a traceback at the interpreter's end
        return status
    except UsageError as error:
        return _complain(program, str(error), 2)
    except BalloonError as error:
        return _complain(program, str(error), statuses.get(type(error), 1))
    except BrokenPipeError:
        give_up_standard_output()
        return 141
    except OSError as error:
        give_up_standard_output()
        return _complain(program, reason(error), 1)
    except KeyboardInterrupt:
        return 130


@contextmanager
def errors_of_standard_output() -> Iterator[None]:
    """Have an OSError of what is written here name standard output; a closed one stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def reason(error: OSError | ValueError) -> str:
    """Return the message of ``error``, with its file name if it has one, without Python's ``[Errno N]``."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _complain(program: str, message: str, status: int) -> int:
    from protocol.process.log_lines import error_line  # with `logging`, which a quick command does not need

    if sys.stderr is not None:
        with suppress(OSError):  # the status says it, too
            for line in message.split("\n"):  # a file's mistakes have a line each
                print(error_line(escaped(line), _typed(program)), file=sys.stderr)
    return status


def escaped(line: str) -> str:
    """Return a line for the terminal, with backslash escapes for what it would obey: a part may be a peer's words."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in line
    )


def give_up_standard_output() -> None:
    """Discard the buffered standard output, after a write to it has failed."""
    sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process's life
