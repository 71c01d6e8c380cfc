"""The programs that are installed, and their parsers."""

import argparse
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import host.balloonctl.__main__
import host.command_line
import host.policy.live.__main__


class Program(NamedTuple):
    """A command, the module that runs it, and what makes its parser."""

    name: str
    module: str
    make_parser: Callable[[], argparse.ArgumentParser]


PROGRAMS: Final = (
    Program("vhost-user-balloon", "host", host.command_line.make_parser),
    Program("balloonctl", "host.balloonctl", host.balloonctl.__main__.make_parser),
    Program("balloon-policy", "host.policy.live", host.policy.live.__main__.make_parser),
)


def sub_commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands of ``parser`` by name, each with its own parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of ``parser`` in the order of ``--help``."""
    return [name for action in parser._actions for name in action.option_strings]
