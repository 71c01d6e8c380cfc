"""``--ask``: one command to the control socket of a daemon, from a command line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from host.qmp.negotiation import NEGOTIATE
from host.qmp.qmp_client import CommandError, QmpClient
from protocol.errors import BalloonError, UsageError
from protocol.units import parse_size


def ask(path: Path, name: str, arguments: Mapping[str, Any]) -> object:
    """Return the answer of the daemon whose control socket is at ``path`` to a command, without a time limit.

    Raises:
        BalloonError: no daemon answers there, the command was answered with an error, or the daemon ended.
    """
    with QmpClient(path, answer_seconds=None) as client:
        if name == NEGOTIATE:
            return {}  # that is done already
        try:
            result: object = client.command(name, **arguments)
        except CommandError as error:
            raise BalloonError(error.description) from error
        return result


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` words as arguments. A value is JSON, or a size such as 512M, or otherwise a string.

    Raises:
        UsageError: a word without ``=``, or a name that is given twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise UsageError(f"arguments are written NAME=VALUE, not {word!r}")
        if name in arguments:
            raise UsageError(f"argument {name} comes twice")
        arguments[name] = _parse_value(text)
    return arguments


def _parse_value(text: str) -> Any:
    for parse in (json.loads, parse_size):
        try:
            return parse(text)
        except (ValueError, RecursionError, UsageError):
            continue
    return text
