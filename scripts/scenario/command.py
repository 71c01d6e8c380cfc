"""``balloon-lab run``: plays a scenario and says what it cost."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from protocol.errors import UsageError
from protocol.process.command_line import option_type, path_option

if TYPE_CHECKING:
    from scripts.scenario.run_record import RunRecord, Sample
    from scripts.scenario.scenario import Scenario

NAME: Final = "run"

DESCRIPTION: Final = "Plays virtual machines that share a host's memory, as a scenario file describes them."

EPILOG: Final = """\
A real run starts a process for each machine; a virtual run plays the same in virtual time, without processes and
without their memory. After Ctrl-C the results so far are written.

exit status: 0 if the run came to its end, 1 for a failure, 2 for a usage error, 130 after Ctrl-C

examples:
  balloon-lab run --list
  balloon-lab run taking-turns
  balloon-lab run staggered-builds --virtual
  balloon-lab run my.toml --virtual --policy reporting --seed 3 --out build/run
"""

_MOST_ROWS: Final = 20
_PROGRESS_STEPS: Final = 10


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 1 << 31:
        raise UsageError(f"{text} is not from 0 to {(1 << 31) - 1}")
    return seed


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
    parser.add_argument("--seed", metavar="N", type=option_type(_seed), help="use this seed instead of the scenario's")
    parser.add_argument("--out", metavar="DIR", type=option_type(path_option), help="write the results into DIR")
    parser.add_argument("--json", metavar="PATH", help="write the summary as JSON to PATH, - for standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises:
        UsageError: a mistake in the arguments or in the scenario.
        BalloonError: a file cannot be read or written.
    """
    if arguments.list:
        return _list()
    if arguments.scenario is None:
        raise UsageError(f"{NAME} needs a scenario: a name of --list or a file")
    return _play(arguments)


def _list() -> int:
    from scripts.scenario.scenario_file import load_scenario, shipped_scenarios

    shipped = shipped_scenarios()
    width = max(map(len, shipped))
    for name, path in shipped.items():
        print(f"{name:<{width}}  {load_scenario(path).title}")
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
    out: Path | None = arguments.out
    with open_json(arguments.json) as stream:
        if out is not None:
            prepare_directory(out)
        play = _play_virtually if arguments.virtual else _play_really
        told = progress(scenario.duration, sys.stderr)
        record = play(scenario, arguments.policy, arguments.seed, told, maps=out is not None)
        if out is not None:
            write_results(record, out)
        if stream is not None:
            print(json.dumps(summary(record), indent=2), file=stream, flush=True)
    print_table(record, sys.stderr if arguments.json == "-" else sys.stdout, out)
    return 130 if record.interrupted else 0


def _play_virtually(
    scenario: "Scenario",
    policy_name: str | None,
    seed: int | None,
    on_sample: "Callable[[Sample], None]",
    *,
    maps: bool,
) -> "RunRecord":
    from host.policy.registry import make_policy
    from scripts.scenario.virtual.fleet import Fleet

    name = policy_name or scenario.policy.name
    parameters = scenario.policy.parameters if name == scenario.policy.name else {}
    return Fleet(scenario, make_policy(name, parameters), policy_name=name, seed=seed, maps=maps).run(on_sample)


def _play_really(
    scenario: "Scenario",
    policy_name: str | None,
    seed: int | None,
    on_sample: "Callable[[Sample], None]",
    *,
    maps: bool,
) -> "RunRecord":
    from scripts.scenario.real.play import play

    policy = policy_name or scenario.policy.name
    chosen = scenario.seed if seed is None else seed
    return play(scenario, policy=policy, seed=chosen, maps=maps, on_sample=on_sample)


def progress(duration: float, stream: TextIO) -> "Callable[[Sample], None]":
    """Return what prints a line to ``stream`` with each tenth of the run."""
    told = 0

    def on_sample(sample: "Sample") -> None:
        nonlocal told
        step = int(sample.t / duration * _PROGRESS_STEPS)
        if step > told:
            told = step
            running = sum(vm.resident_bytes > 0 for vm in sample.vms.values())
            used = sample.used_bytes / (1 << 30)
            line = f"{step * 100 // _PROGRESS_STEPS:3} %  {sample.t:.0f} s: {used:.2f} GiB for {running} machines"
            print(line, file=stream, flush=True)

    return on_sample


def print_table(record: "RunRecord", stream: TextIO, out: Path | None) -> None:
    """Print how each machine ended, and the score."""
    from protocol.units import format_size
    from scripts.laboratory.experiment import Table
    from scripts.scenario.score import score_of

    score = score_of(record)
    rows = []
    for name, outcome in list(record.outcomes.items())[:_MOST_ROWS]:
        finished = "" if outcome.finished_at is None else f"{outcome.finished_at:.1f}"
        costs = f"{outcome.gib_minutes:.3f}", format_size(outcome.refaulted_bytes), f"{outcome.stall_seconds:.2f}"
        rows.append((name, outcome.state.value, finished, format_size(outcome.peak_bytes), *costs))
    title = f"{record.scenario.title}: {record.policy}, seed {record.seed}, {record.seconds:g} s"
    header = ("machine", "state", "finished at s", "peak", "GiB*min", "refaulted", "stall s")
    print(Table(title=title, header=header, rows=tuple(rows)), file=stream)
    if len(record.outcomes) > _MOST_ROWS:
        print(f"  and {len(record.outcomes) - _MOST_ROWS} machines more", file=stream)
    print(
        f"  host: {score.host_gib_minutes:.3f} GiB*min, peak {format_size(score.peak_bytes)} of "
        f"{format_size(record.scenario.budget_bytes)}, {score.oom_events} OOM events, "
        f"{format_size(score.refaulted_bytes)} refaulted, {score.stall_seconds:.2f} s stalled, "
        f"{score.control_actions} control actions, {score.reclaim_cpu_seconds:.2f} s of CPU to reclaim",
        file=stream,
    )
    if out is not None:
        print(f"  written: {out}; as a page: balloon-lab report {out}", file=stream, flush=True)
