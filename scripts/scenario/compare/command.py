"""``balloon-lab compare``: plays a scenario in many variants over the same seeds, and says which differences count."""

import argparse
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import option_type, path_option, whole_number

if TYPE_CHECKING:
    from scripts.laboratory.experiment import Table
    from scripts.scenario.compare.kept_scores import KeptScores
    from scripts.scenario.compare.variant import Variant
    from scripts.scenario.scenario import Scenario
    from scripts.scenario.score import Score

NAME: Final = "compare"

DESCRIPTION: Final = (
    "Plays a scenario, or all shipped ones, in virtual time under several policies, reporters or constants, "
    "with the same seeds."
)

EPILOG: Final = """\
A star marks a difference to the first variant that is larger than the spread over the seeds. Differences are paired
by seed: each seed gives one, and their mean is further from zero than the t quantile (95 %, one degree of freedom less
than seeds) times its standard error. Less is better in every column.

examples:
  balloon-lab compare noisy-neighbour --vary policy=reporting,mom,steady --seeds 5
  balloon-lab compare staggered-builds --vary reporter=boundary,rotation --vary delay=0.1,2 --json -
  balloon-lab compare --all --seeds 20 --scores scores.jsonl --minutes 30 --markdown table.md
  balloon-lab compare idle-fleet-overnight --vary policy=reporting,steady --cluster tcp://scheduler:8786
"""

TABLE: Final = "compare.csv"
"""The file of ``--out``."""

_TITLE_MOST: Final = 60
"""Characters of a scenario's title, which is foreign text."""

SEEDS_MOST: Final = 10_000
ROUND: Final = 4
"""Seeds of one scenario that --all plays before it goes on to the next one: enough to have a spread."""


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 0:
        raise UsageError(f"{text} is not 0 or more")
    return minutes


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("scenario", metavar="NAME|FILE.toml", nargs="?", help="a shipped scenario or a file")
    parser.add_argument(
        "--all",
        action="store_true",
        help="all shipped scenarios without a real kernel, large ones smaller, under all policies: how ours stands",
    )
    parser.add_argument(
        "--vary",
        metavar="KIND=VALUE,...",
        action="append",
        default=[],
        help="policy, reporter, delay (seconds), order or capacity (repeatable: all combinations)",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=whole_number(1, SEEDS_MOST),
        default=5,
        help="runs of each variant (default: %(default)s)",
    )
    parser.add_argument("--scale", metavar="FACTOR", type=option_type(float), help="as for balloon-lab run")
    parser.add_argument(
        "--jobs", metavar="N", type=whole_number(1, SEEDS_MOST), help="runs at once (default: one for each processor)"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="play them on this Dask scheduler's workers")
    parser.add_argument("--out", metavar="DIR", type=option_type(path_option), help="write compare.csv into DIR")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=option_type(path_option),
        help="draw memory against stall time into FILE, .png, .svg or .pdf (extra plot)",
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        type=option_type(path_option),
        help="with --all: keep each score in FILE, and play only what is not there (delete it after changing a policy)",
    )
    parser.add_argument(
        "--minutes",
        metavar="M",
        type=option_type(_minutes),
        default=math.inf,
        help="with --all: begin no run after M minutes, and compare over the seeds that were played",
    )
    parser.add_argument("--markdown", metavar="PATH", help="with --all: also write the tables as Markdown to PATH")
    parser.add_argument("--json", metavar="PATH", help="also write all scores as JSON to PATH, - for standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status.

    Raises:
        UsageError: a mistake in the arguments or in the scenario.
        BalloonError: a file cannot be written, or the cluster cannot be used.
    """
    if arguments.all:
        return _run_all(arguments)
    if arguments.scenario is None:
        raise UsageError(f"{NAME} needs a scenario: a name of balloon-lab run --list, a file, or --all")
    for option, is_given in (
        ("markdown", arguments.markdown is not None),
        ("scores", arguments.scores is not None),
        ("minutes", arguments.minutes < math.inf),
    ):
        if is_given:
            raise UsageError(f"--{option} goes with --all")
    return _run_one(arguments)


def _run_one(arguments: argparse.Namespace) -> int:
    import json

    from scripts.json_output import open_json
    from scripts.scenario.compare.jobs import play_all
    from scripts.scenario.compare.picture import check_picture, save_comparison
    from scripts.scenario.compare.variant import variants
    from scripts.scenario.results import prepare_directory
    from scripts.scenario.scale import scaled
    from scripts.scenario.scenario_file import find_scenario, load_scenario

    scenario = load_scenario(find_scenario(arguments.scenario))
    scale = 1.0 if arguments.scale is None else float(arguments.scale)
    if scale != 1:
        scenario = scaled(scenario, scale)
    chosen = variants(scenario, arguments.vary or ["policy=reporting,steady"])
    seeds = [scenario.seed + number for number in range(arguments.seeds)]
    out: Path | None = arguments.out
    if arguments.picture is not None:
        check_picture(arguments.picture)
    with open_json(arguments.json) as stream:
        if out is not None:
            prepare_directory(out, TABLE)
        scenarios = [variant.scenario for variant in chosen]
        scores = play_all(scenarios, seeds, processes=arguments.jobs, cluster=arguments.cluster, on_done=_progress)
        # First of all: it is there too where a file cannot be written.
        people = sys.stderr if arguments.json == "-" else sys.stdout
        print(table(scenario.title, chosen, scores), *faults(chosen, scores), sep="\n", file=people, flush=True)
        if out is not None:
            _write(out / TABLE, as_json(chosen, seeds, scores, scale))
        if arguments.picture is not None:
            names = [variant.name for variant in chosen]
            save_comparison(arguments.picture, scenario.title, dict(zip(names, scores, strict=True)))
        if stream is not None:
            rows = as_json(chosen, seeds, scores, scale)
            print(json.dumps({"scenario": scenario.name, "runs": rows}, indent=2), file=stream, flush=True)
    return 0


def _run_all(arguments: argparse.Namespace) -> int:
    from scripts.report_file import report_file
    from scripts.scenario.compare.all_scenarios import compared, details, markdown, overview
    from scripts.scenario.compare.kept_scores import kept_scores

    for option in ("scenario", "vary", "scale", "out", "json", "picture"):
        if getattr(arguments, option) not in (None, []):
            raise UsageError(f"--all does not go with {'a scenario' if option == 'scenario' else f'--{option}'}")
    played = compared()
    scenarios = [scenario for one in played for scenario in one.scenarios]
    file = nullcontext(None) if arguments.markdown is None else report_file(arguments.markdown, "--markdown")
    with file as stream, kept_scores(scenarios, arguments.scores) as kept:
        _play_missing(scenarios, kept, arguments)
        found, first = [], 0
        for one in played:
            if (comparison := one.comparison(kept.scores, first, arguments.seeds)) is not None:
                found.append(comparison)
            first += len(one.scenarios)
        if not found:
            raise BalloonError("no scenario has been played under all policies: give --minutes more")
        if stream is not None:
            stream.write(markdown(found, arguments.seeds))
    for comparison in found:
        print(f"{details(comparison)}\n")
    print(overview(found, arguments.seeds))
    return 0


def _play_missing(scenarios: "list[Scenario]", kept: "KeptScores", arguments: argparse.Namespace) -> None:
    # Some seeds of every scenario before more of any; scenarios that are soon played first; all policies with one seed
    # before the next seed.
    import time

    from scripts.scenario.compare.all_scenarios import machine_hours
    from scripts.scenario.compare.jobs import Job, play_jobs

    jobs = [Job(variant, seed) for variant in range(len(scenarios)) for seed in range(arguments.seeds)]
    missing = [job for job in jobs if job not in kept.scores]
    hours = [machine_hours(scenario) for scenario in scenarios]
    missing.sort(
        key=lambda job: (job.seed // ROUND, hours[job.variant], scenarios[job.variant].name, job.seed, job.variant)
    )
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.minutes == 0 or not missing:
        return
    runs = play_jobs(scenarios, missing, processes=arguments.jobs, cluster=arguments.cluster)
    for done, (job, score) in enumerate(runs, 1):
        kept.add(job, score)
        _progress(done, len(missing))
        if time.monotonic() > end:
            print(f"after {arguments.minutes:g} minutes: {len(missing) - done} runs are left out", file=sys.stderr)
            break


def _progress(done: int, of: int) -> None:
    if done * 10 // of > (done - 1) * 10 // of:
        print(f"{done} of {of} runs", file=sys.stderr, flush=True)


def as_json(
    chosen: "list[Variant]", seeds: list[int], scores: "list[list[Score]]", scale: float
) -> list[dict[str, Any]]:
    """Return one object for each run: variant, seed, what was played and at which scale, and the score."""
    return [
        {
            "variant": variant.name,
            "seed": seed,
            "scenario": variant.scenario.name,
            "duration": variant.scenario.duration,
            "scale": scale,
            **score.as_json(),
        }
        for variant, row in zip(chosen, scores, strict=True)
        for seed, score in zip(seeds, row, strict=True)
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    from scripts.report_file import report_file

    with report_file(path, "--out") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def faults(chosen: "list[Variant]", scores: "list[list[Score]]") -> list[str]:
    """Return a line for each variant whose policy did not always decide: its figures are not those of the policy."""
    counts = [sum(score.faulty_decisions or 0 for score in row) for row in scores]
    return [
        f"  {variant.name}: {count} decisions were faulty, and the last one stood (balloon-lab run says why)"
        for variant, count in zip(chosen, counts, strict=True)
        if count
    ]


def table(title: str, chosen: "list[Variant]", scores: "list[list[Score]]") -> "Table":
    """Return the table for people: mean and standard deviation of each measure, and a star where it differs."""
    from host.terminal_view.styled_line import cut, printable
    from scripts.laboratory.experiment import Table
    from scripts.scenario.compare.spread import MEASURES, spread

    rows = []
    for variant, row in zip(chosen, scores, strict=True):
        cells = []
        for name in MEASURES:
            found = spread(row, scores[0], name)
            star = "*" if found.is_different else " "
            cells.append(f"{found.mean:.3g} ± {found.deviation:.2g}{star}")
        rows.append((variant.name, *cells))
    seeds = len(scores[0])
    title = cut(printable(title), _TITLE_MOST)
    heading = f"{title}: {seeds} seed{'s' if seeds > 1 else ''} each; * differs from the first by more than the spread"
    return Table(title=heading, header=("variant", *MEASURES.values()), rows=tuple(rows))
