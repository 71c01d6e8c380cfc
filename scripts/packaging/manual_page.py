"""Manual pages (man(7)), made from the parsers of the command lines."""

import argparse
from collections.abc import Container, Iterator

from scripts.packaging.programs import options, sub_commands


def escaped(text: str) -> str:
    """Return ``text`` as roff takes it: a minus sign is no hyphen, and no line is a request by accident."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines)


def manual_page(name: str, parser: argparse.ArgumentParser, version: str) -> str:
    """Return the page ``name``\\ (1) of section 1."""
    description = " ".join((parser.description or "").split())
    first = description.partition(":")[0].partition(".")[0]
    lines = [
        f'.TH {name.upper()} 1 "" "{name} {version}" "User Commands"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(first[:1].lower() + first[1:])}",
        ".SH SYNOPSIS",
        f".SY {escaped(name)}",
        *(escaped(part).replace(" ", "\\ ") for part in usage_parts(parser)),
        ".YS",
        ".SH DESCRIPTION",
        escaped(description),
        ".SH OPTIONS",
        *_options(parser),
    ]
    commands = list(sub_commands(parser))
    if commands:
        lines.append(".SH COMMANDS")
    for command, its_parser in commands:
        lines += [
            f".SS {escaped(command)}",
            escaped(its_parser.description or ""),
            *_options(its_parser, options(parser)),
        ]
    if parser.epilog:
        lines += [".SH NOTES", ".nf", escaped(parser.epilog.rstrip()), ".fi"]
    return "\n".join(lines) + "\n"


def usage_parts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the parts of the usage line that stay on one line each: a word, or what is in brackets."""
    part, depth = "", 0
    for word in parser.format_usage().removeprefix("usage: ").removeprefix(parser.prog).split():
        part = f"{part} {word}" if depth else word
        depth += sum(word.count(sign) for sign in "[{") - sum(word.count(sign) for sign in "]}")
        if not depth:
            yield part


def _options(parser: argparse.ArgumentParser, known: Container[str] = ()) -> Iterator[str]:
    # A command's page has none of the options of all commands, which are ``known``.
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        if any(option in known for option in action.option_strings):
            continue
        yield ".TP"
        yield f"\\fB{escaped(formatter._format_action_invocation(action))}\\fP"
        yield escaped(formatter._expand_help(action))
