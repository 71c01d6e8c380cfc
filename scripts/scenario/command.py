"""``balloon-lab run``: plays a scenario and says what it cost."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import option_type, path_option, whole_number

if TYPE_CHECKING:
    from scripts.scenario.run_record import RunRecord, Sample
    from scripts.scenario.scenario import Scenario
    from scripts.scenario.virtual.fleet import Fleet

NAME: Final = "run"

DESCRIPTION: Final = "Plays virtual machines that share a host's memory, as a scenario file describes them."

EPILOG: Final = """\
A real run starts a process for each machine; a virtual run plays the same in virtual time, without processes and
without their memory. On a terminal there is a live view; ? explains its keys. Ctrl-C, SIGTERM
and SIGHUP keep the results so far.

exit status: 0 if the run came to its end, 1 for a failure, 2 for a usage error, 130 after Ctrl-C or the key q,
143 after SIGTERM, 129 after SIGHUP

examples:
  balloon-lab run --list
  balloon-lab run taking-turns
  balloon-lab run staggered-builds --virtual
  balloon-lab run taking-turns --virtual --policy mom --set pressure_threshold=0.3
  balloon-lab run my.toml --virtual --policy reporting --seed 3 --out build/run
"""

_MOST_ROWS: Final = 20
_PROGRESS_STEPS: Final = 10
SEED_MAX: Final = (1 << 31) - 1
_TITLE_MOST: Final = 60
"""Characters of a scenario's title, which is foreign text."""


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 < speed <= 1e9:
        raise UsageError(f"{text} is not a number above 0")
    return speed


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument(
        "scenario", metavar="NAME|FILE.toml", nargs="?", help="a shipped scenario (see --list) or a file"
    )
    parser.add_argument("--list", action="store_true", help="list the shipped scenarios and exit")
    parser.add_argument("--virtual", action="store_true", help="play in virtual time, without processes")
    parser.add_argument(
        "--scale",
        metavar="FACTOR",
        type=option_type(float),
        help="multiply all sizes and rates by FACTOR, such as 0.25",
    )
    parser.add_argument("--policy", metavar="NAME", help="use this policy instead of the scenario's")
    parser.add_argument(
        "--set",
        metavar="PARAM=VALUE",
        action="append",
        default=[],
        help="a parameter of the policy (balloon-policy --list NAME names them); several times for several",
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(0, SEED_MAX), help="use this seed instead of the scenario's"
    )
    parser.add_argument(
        "--speed",
        metavar="FACTOR",
        type=option_type(_speed),
        help="in the live view of a virtual run, seconds of virtual time in a second (default: by the duration)",
    )
    parser.add_argument(
        "--screenshot", metavar="FILE.svg", type=option_type(path_option), help="write the live view of a virtual run"
    )
    parser.add_argument(
        "--at", metavar="SECONDS", type=option_type(float), help="play up to this moment for it (default: to the end)"
    )
    parser.add_argument("--plain", action="store_true", help="lines of progress instead of the live view")
    parser.add_argument("--out", metavar="DIR", type=option_type(path_option), help="write the results into DIR")
    parser.add_argument("--json", metavar="PATH", help="write the summary as JSON to PATH, - for standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises:
        UsageError: a mistake in the arguments or in the scenario.
        BalloonError: a file cannot be read or written, or the run ended early for another reason than Ctrl-C; then its
            results are written.
    """
    if arguments.list:
        return _list()
    if arguments.scenario is None:
        raise UsageError(f"{NAME} needs a scenario: a name of --list or a file")
    from scripts.stop_signals import signals_as_exceptions, signals_as_interrupts

    if arguments.virtual:
        with signals_as_interrupts() as stop:
            try:
                status = _play(arguments)
            except KeyboardInterrupt:  # not while it played
                status = 130
        return 128 + stop.number if stop.number else status
    with signals_as_exceptions() as stop:  # a real run ends what it has started, whatever signal ends it
        status = _play(arguments)
    return 128 + stop.number if stop.number else status


def _list() -> int:
    from host.terminal_view.styled_line import cut, printable
    from scripts.scenario.scenario_file import load_scenario, shipped_scenarios

    shipped = shipped_scenarios()
    width = max(map(len, shipped))
    for name, path in shipped.items():
        print(f"{name:<{width}}  {cut(printable(load_scenario(path).title), _TITLE_MOST)}")
    return 0


def _play(arguments: argparse.Namespace) -> int:
    import json

    from scripts.json_output import open_json
    from scripts.scenario.results import prepare_directory, summary, write_results
    from scripts.scenario.scale import scaled
    from scripts.scenario.scenario_file import find_scenario, load_scenario

    scenario = load_scenario(find_scenario(arguments.scenario))
    if arguments.scale is not None:
        scenario = scaled(scenario, arguments.scale)
    scenario = _with_policy(scenario, arguments)
    if arguments.screenshot is not None:
        return _screenshot(scenario, arguments)
    out: Path | None = arguments.out
    with open_json(arguments.json) as stream:
        if out is not None:
            prepare_directory(out)
        record, number = _watched(scenario, arguments) or (_unwatched(scenario, arguments), None)
        unwritten: BalloonError | None = None
        if out is not None:
            try:
                write_results(record, out)
            except BalloonError as error:  # the run may have been long: what else was asked for is given
                out, unwritten = None, error
        if stream is not None:
            print(json.dumps(summary(record), indent=2), file=stream, flush=True)
    print_table(record, sys.stderr if arguments.json == "-" else sys.stdout, out)
    if unwritten is not None:
        raise unwritten
    if record.problem:
        raise BalloonError(record.problem)
    if number is not None:
        return 128 + number
    return 130 if record.interrupted else 0


def _screenshot(scenario: "Scenario", arguments: argparse.Namespace) -> int:
    from scripts.scenario.view.screenshot import screenshot
    from scripts.scenario.view.watched_run import NO_VIEW, can_show

    path: Path = arguments.screenshot
    if not arguments.virtual:
        raise UsageError("--screenshot is for virtual time: give --virtual too")
    if not can_show():
        raise UsageError(f"--screenshot: {NO_VIEW}")
    at = scenario.duration if arguments.at is None else arguments.at
    text = screenshot(_fleet(scenario, arguments), at)
    try:
        path.write_text(text)
    except OSError as error:
        raise BalloonError(f"{path}: {error.strerror}") from error
    return 0


def _with_policy(scenario: "Scenario", arguments: argparse.Namespace) -> "Scenario":
    # The scenario under the policy of --policy, with the parameters of --set.
    from dataclasses import replace

    from host.policy.parameters import parse_settings
    from scripts.scenario.scenario import PolicySpec

    name = str(arguments.policy or scenario.policy.name)
    parameters = scenario.policy.parameters
    if name != scenario.policy.name and parameters:
        left_out = f"{', '.join(parameters)}: parameters of {scenario.policy.name} in the scenario"
        print(f"balloon-lab run: {left_out}, left out for {name}", file=sys.stderr, flush=True)
        parameters = {}
    return replace(scenario, policy=PolicySpec(name=name, parameters={**parameters, **parse_settings(arguments.set)}))


def _unwatched(scenario: "Scenario", arguments: argparse.Namespace) -> "RunRecord":
    on_sample = progress(scenario.duration, sys.stderr)
    if arguments.virtual:
        return _fleet(scenario, arguments).run(on_sample)
    from scripts.scenario.real.play import play

    policy, seed = scenario.policy.name, _seed_of(scenario, arguments)
    return play(scenario, policy=policy, seed=seed, maps=arguments.out is not None, on_sample=on_sample)


def _watched(scenario: "Scenario", arguments: argparse.Namespace) -> "tuple[RunRecord, int | None] | None":
    # The record and the number of a signal that ended the run; None where there is no live view.
    from scripts.scenario.view.run_clock import watching_speed
    from scripts.scenario.view.watched_run import NO_VIEW, can_show, is_terminal, watch

    if arguments.speed is not None and not arguments.virtual:
        raise UsageError("--speed is for virtual time: give --virtual too")
    if arguments.plain or not is_terminal():
        return None
    if not can_show():
        print(f"balloon-lab run: {NO_VIEW}", file=sys.stderr, flush=True)
        return None
    if arguments.virtual:
        speed = watching_speed(scenario.duration) if arguments.speed is None else arguments.speed
        fleet = _fleet(scenario, arguments)
        return watch(
            fleet.scenario,
            lambda watcher: fleet.run(watch=watcher),
            speed,
            lambda: fleet.record if fleet.give_up() else None,
        )
    from scripts.scenario.real.play import play_prepared, prepared

    fits, policy, seed = prepared(scenario), scenario.policy.name, _seed_of(scenario, arguments)
    return watch(
        fits,
        lambda watcher: play_prepared(
            fits, policy=policy, seed=seed, maps=arguments.out is not None, watch=watcher, say=watcher.say
        ),
        None,
    )


def _seed_of(scenario: "Scenario", arguments: argparse.Namespace) -> int:
    return scenario.seed if arguments.seed is None else int(arguments.seed)


def _fleet(scenario: "Scenario", arguments: argparse.Namespace) -> "Fleet":
    from host.policy.live.policy_process import policy_for_run
    from scripts.scenario.virtual.fleet import Fleet

    policy = scenario.policy
    return Fleet(
        scenario,
        policy_for_run(policy.name, policy.parameters),
        policy_name=policy.name,
        seed=arguments.seed,
        maps=arguments.out is not None,
    )


def progress(duration: float, stream: TextIO) -> "Callable[[Sample], None]":
    """Return what prints a line to ``stream`` with each tenth of the run, as long as it takes them."""
    told = 0

    def on_sample(sample: "Sample") -> None:
        nonlocal told
        step = int(sample.t / duration * _PROGRESS_STEPS)
        if step > told:
            told = step
            running = sum(vm.resident_bytes > 0 for vm in sample.vms.values())
            used = sample.used_bytes / (1 << 30)
            machines = "machine" if running == 1 else "machines"
            line = f"{step * 100 // _PROGRESS_STEPS:3} %  {sample.t:.0f} s: {used:.2f} GiB for {running} {machines}"
            with suppress(OSError):  # a run is not lost for a reader of its progress
                print(line, file=stream, flush=True)

    return on_sample


def print_table(record: "RunRecord", stream: TextIO, out: Path | None) -> None:
    """Print how each machine ended, and the score."""
    from host.terminal_view.styled_line import cut, printable
    from protocol.units import format_size
    from scripts.laboratory.experiment import Table
    from scripts.scenario.score import score_of

    score = score_of(record)
    rows = []
    for name, outcome in list(record.outcomes.items())[:_MOST_ROWS]:
        finished = "" if outcome.finished_at is None else f"{outcome.finished_at:.1f}"
        costs = f"{outcome.gib_minutes:.3f}", format_size(outcome.refaulted_bytes), f"{outcome.stall_seconds:.2f}"
        rows.append((name, outcome.state.value, finished, format_size(outcome.peak_bytes), *costs))
    scenario = cut(printable(record.scenario.title), _TITLE_MOST)
    title = f"{scenario}: {printable(record.policy)}, seed {record.seed}, {record.seconds:g} s"
    header = ("machine", "state", "finished at s", "peak", "GiB*min", "refaulted", "stall s")
    print(Table(title=title, header=header, rows=tuple(rows)), file=stream)
    if len(record.outcomes) > _MOST_ROWS:
        print(f"  and {len(record.outcomes) - _MOST_ROWS} machines more", file=stream)
    for name, outcome in list(record.outcomes.items())[:_MOST_ROWS]:
        if outcome.state.has_ended and outcome.reason:
            print(f"  {name} {outcome.state.value}: {printable(outcome.reason)}", file=stream)
    ooms = "1 OOM event" if score.oom_events == 1 else f"{score.oom_events} OOM events"
    daemon = "" if score.daemon_cpu_seconds is None else f", {score.daemon_cpu_seconds:.2f} s for the daemon"
    print(
        f"  host: {score.host_gib_minutes:.3f} GiB*min, peak {format_size(score.peak_bytes)} of "
        f"{format_size(record.scenario.budget_bytes)}, {ooms}, "
        f"{format_size(score.refaulted_bytes)} refaulted, {score.stall_seconds:.2f} s stalled, "
        f"{score.control_actions} control actions, {score.reclaim_cpu_seconds:.2f} s of CPU to reclaim{daemon}",
        file=stream,
    )
    if faults := [decision for decision in record.decisions if decision.error is not None]:
        first = f"the first at {faults[0].t:.1f} s: {faults[0].error}"
        print(f"  policy: {len(faults)} of {len(record.decisions)} decisions were faulty, {first}", file=stream)
    if out is not None:
        print(f"  written: {out}; as a page: balloon-lab report {out}", file=stream, flush=True)
