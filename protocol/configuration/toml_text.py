"""The text of a TOML file: what is wrong with it is one line that says where."""

import re
from typing import Any

from protocol.errors import UsageError


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        UsageError: it is not TOML; the message has the line and the column where they are known.
    """
    import tomllib  # late: the daemon needs it with a file alone

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_syntax_error(str(error), text)) from error
    except RecursionError as error:
        raise UsageError("not TOML: lists or tables that are nested too deeply") from error
    except ValueError as error:  # of Python: a number with thousands of digits, a day that no month has
        raise UsageError(f"not TOML: {error}") from error


def _syntax_error(message: str, text: str) -> str:
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message)
    if match is not None:
        return f"line {match[2]}, column {match[3]}: not TOML: {match[1]}"
    return f"line {text.count(chr(10)) + 1}: not TOML: {message.removesuffix(' (at end of document)')}"
