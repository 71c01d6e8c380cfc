"""The commands of ``balloonctl``: each takes its arguments and the daemons, prints, and returns the exit status."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from host.balloonctl.answers import ALLOWED, RECLAIMED, STATISTICS, Shape, check_answer
from host.balloonctl.daemons import Daemons, Machine
from host.balloonctl.table import facts_list, short_size, status_table
from host.qmp.qmp_client import CommandError
from host.terminal_view.styled_line import printable
from protocol.errors import BalloonError
from protocol.process.command_line import escaped

UNHEALTHY: Final = 1
"""Exit status of ``doctor`` if a machine is not healthy, and of commands that a daemon did not answer."""


_STOPS: Final = {
    "stall": "its driver stood still or was too slow",
    "guest": "the guest took pages back, its driver has gone, or another size was asked for",
    "refault": "the guest began to read back what it had given",
}
"""Why a reclaim ended early, by ``stopped-by``."""


def say(text: str) -> None:
    """Print lines for people. Characters that a terminal would obey are not among them, whatever a daemon answers."""
    print("\n".join(map(printable, text.split("\n"))))


def print_json(value: object) -> None:
    """Print ``value`` as JSON."""
    print(json.dumps(value, indent=2))


def terminal_width() -> int | None:
    """Return the width of the terminal on standard output, None if it is not one: a pipe takes lines of any width."""
    if sys.stdout is None or not sys.stdout.isatty():  # None is a closed one
        return None
    from shutil import get_terminal_size  # late: it loads what compresses files

    return get_terminal_size().columns


def tell_failures(daemons: Daemons) -> int:
    """Print a line for each daemon that did not answer, and return the exit status."""
    for line in daemons.failures:
        print(f"balloonctl: {escaped(line)}", file=sys.stderr)
    return UNHEALTHY if daemons.failures else 0


def status(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """One line a machine."""
    machines = list(daemons.machines())
    if arguments.json:
        print_json([_with_label(machine) for machine in machines])
    elif machines:
        say("\n".join(status_table([(each.label, each.entry) for each in machines], terminal_width())))
    elif daemons.daemons:
        print("no machine is connected")
    return tell_failures(daemons)


def _with_label(machine: Machine) -> dict[str, Any]:
    return {"label": machine.label, "daemon": str(machine.daemon.path), **machine.entry}


def show(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """All facts of one machine."""
    machine = daemons.machine(arguments.vm)
    if arguments.json:
        print_json(_with_label(machine))
    else:
        say("\n".join(facts_list(machine.entry, terminal_width())))
    return 0


def doctor(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """What is wrong with one machine, or with each."""
    from host.balloonctl.doctor import diagnosis_lines, diagnosis_object, fresh_entries

    machines = list(daemons.machines()) if arguments.vm is None else [daemons.machine(arguments.vm)]
    verdicts = list(zip(machines, fresh_entries(machines), strict=True))
    objects = [diagnosis_object(machine.label, entry) for machine, entry in verdicts]
    if arguments.json:
        print_json(objects)
    elif not machines and daemons.daemons:
        print("no machine is connected: has the front-end the daemon's --socket-path?")
    else:
        for machine, entry in verdicts:
            say("\n".join(diagnosis_lines(machine.label, entry, terminal_width())))
    failed = tell_failures(daemons)
    return failed if all(each["healthy"] for each in objects) else UNHEALTHY


def _command(
    arguments: argparse.Namespace, daemons: Daemons, name: str, shape: Shape | None = None, **members: object
) -> Any:
    # Carries out a command on one machine, and returns the answer, which has this shape.
    machine = daemons.machine(arguments.vm)
    try:
        answer = machine.daemon.ask(name, vm=machine.number, **members)
        return answer if shape is None else check_answer(answer, shape, str(machine.daemon.path))
    except CommandError as error:
        raise BalloonError(f"vm {machine.label}: {error.description}") from error


def _answer(arguments: argparse.Namespace, answer: object, line: str) -> int:
    if arguments.json:
        print_json(answer)
    elif line:
        say(line)
    return 0


def set_size(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Give a machine another size."""
    answer = _command(arguments, daemons, "balloon", value=arguments.size)
    return _answer(arguments, answer, "")


def stats(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """The guest's own statistics, fresh."""
    answer: Mapping[str, Any] = _command(arguments, daemons, "query-guest-statistics", STATISTICS)
    return _answer(arguments, answer, "\n".join(facts_list(answer["statistics"])))


def reclaim(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Have a machine give up what it does not use."""
    answer = _command(
        arguments,
        daemons,
        "reclaim",
        RECLAIMED,
        method=arguments.method,
        floor=arguments.floor,
        pace=arguments.pace,
        stop_on_refault=arguments.stop_on_refault or None,
    )
    given, offered = short_size(answer["discarded-bytes"]), short_size(answer["offered-bytes"])
    why = "" if answer["complete"] else f", incomplete: {_STOPS.get(answer['stopped-by'], answer['stopped-by'])}"
    line = f"{given} discarded of {offered} that the guest gave, in {answer['seconds']:.1f} s{why}"
    return _answer(arguments, answer, line)


def inhibit(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Discard nothing of a machine."""
    return _answer(arguments, _command(arguments, daemons, "inhibit", why=arguments.why), "")


def allow(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Discard again."""
    answer = _command(arguments, daemons, "allow", ALLOWED, force=arguments.force or None)
    still = answer["inhibited"]
    return _answer(arguments, answer, "" if still is None else f"inhibited by the {still['by']} still: {still['why']}")


def disconnect(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """End a machine's session."""
    return _answer(arguments, _command(arguments, daemons, "disconnect"), "")


def log_level(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Have all daemons log more or less."""
    for daemon in daemons.daemons:
        daemon.ask("set-log-level", level=arguments.level)
    return tell_failures(daemons)


def ask(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Give each daemon any command."""
    from host.qmp.ask import parse_arguments

    members = parse_arguments(arguments.arguments)
    for daemon in daemons.daemons:
        print_json(daemon.client.command(arguments.name, **members))
    return tell_failures(daemons)


def top(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Show the machines until a key ends it."""
    from host.balloonctl.top import show_top

    return show_top(daemons, arguments.interval)


def watch(arguments: argparse.Namespace, daemons: Daemons) -> int:
    """Print events as they come."""
    from host.balloonctl.watch import watch_all

    return watch_all(daemons, as_json=arguments.json)
