"""Completion for bash, made from the parsers of the command lines: options, commands, and the values of choices."""

import argparse
from shlex import quote

from scripts.packaging.programs import options, sub_commands


def bash_completion(name: str, parser: argparse.ArgumentParser) -> str:
    """Return a script that defines and registers the completion of ``name``."""
    function = "_" + name.replace("-", "_")
    commands = list(sub_commands(parser))
    cases = [f"    {command}) words={quote(' '.join(options(its_parser)))} ;;" for command, its_parser in commands]
    choices = {
        option: " ".join(map(str, action.choices))
        for each in (parser, *(its_parser for _, its_parser in commands))
        for action in each._actions
        if action.choices is not None and action.option_strings
        for option in action.option_strings
    }
    first = " ".join([*(command for command, _ in commands), *options(parser)])
    return "\n".join(
        [
            f"# bash completion of {name}",
            f"{function}() {{",
            '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" word words',
            '    case "$previous" in',
            *(f"    {option}) words={quote(values)} ;;" for option, values in choices.items()),
            "    *)",
            f"    words={quote(first)}",
            '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            '    case "$word" in',
            *cases,
            "    *) ;;",
            "    esac",
            "    done",
            "    ;;",
            "    esac",
            '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
            "}",
            f"complete -o default -F {function} {name}",
            "",
        ]
    )
