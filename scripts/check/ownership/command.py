"""``balloon-check ownership``: try seeds, or replay a script."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from protocol.errors import BalloonError, UsageError
from scripts.check.listing import print_listing
from scripts.check.names import nearest
from scripts.check.ownership.faults.all_faults import ALL_FAULTS
from scripts.check.ownership.options import ALL
from scripts.check.ownership.page_owners import Violation
from scripts.check.ownership.runs import Run, replay
from scripts.check.ownership.script import Script, Vocabulary, parse_script
from scripts.check.ownership.search import Found, Outcome, Progress, search
from scripts.check.ownership.world.world import ACTIONS

SCRIPT_MAX: Final = 1 << 20
"""Most bytes of a script."""

_SHOW_SECONDS: Final = 0.5


def run(arguments: argparse.Namespace) -> int:
    """Try seeds, replay a script, or list the faults. Return the exit status: 1 if a page had the wrong owner."""
    if arguments.list:
        print_listing(
            f"{fault.name}\n    {fault.says}\n    found as: {', '.join(sorted(fault.found_as))}"
            for fault in ALL_FAULTS.values()
        )
        return 0
    if arguments.replay is not None:
        if arguments.fault is not None or arguments.save is not None:
            raise UsageError("--replay needs neither --fault, which the script names, nor --save")
        return _replay(arguments)
    if arguments.fault not in (None, ALL, *ALL_FAULTS):
        raise UsageError(f"no fault is called {arguments.fault!r}{nearest([arguments.fault], ALL_FAULTS)} (see --list)")
    if arguments.save is not None and not arguments.save.parent.is_dir():
        raise UsageError(f"--save {arguments.save}: {arguments.save.parent} is not a directory")
    if arguments.fault == ALL:
        if arguments.save is not None:
            raise UsageError("--save needs one fault")
        return _try_all(arguments)
    return _try(arguments)


# --- Seeds ---


class _Line:
    """The line on a terminal that shows how far a search is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin = time.monotonic()
        self._shown = self._begin if sys.stderr.isatty() else float("inf")

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown < _SHOW_SECONDS:
            return
        self._shown = now
        text = f"{self._what}: {progress.seeds:,} seeds, {now - self._begin:.0f} s"
        if progress.replays:
            text += f", shrinking: {progress.steps} steps after {progress.replays:,} replays"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown != float("inf"):
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _search(arguments: argparse.Namespace, fault: str | None) -> Outcome:
    line = _Line(fault or "no fault")
    try:
        return search(arguments.seed, arguments.runs, steps=arguments.steps, fault=fault, on_progress=line.show)
    finally:
        line.clear()


def _try(arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    outcome = _search(arguments, arguments.fault)
    seconds = time.monotonic() - begin
    say = _sayer(arguments.json)
    found = outcome.found
    if found is None:
        last = arguments.seed + arguments.runs - 1
        say(f"no violation: seeds {arguments.seed} to {last}, {outcome.steps:,} steps, {seconds:.1f} s")
    else:
        _tell(found, outcome, say)
        if arguments.save is not None:
            arguments.save.write_text(str(found.small.script), encoding="utf-8")
            say(f"repeat it: balloon-check ownership --replay {arguments.save}")
    _write_json(arguments.json, {**_searched(arguments, outcome, seconds), "violations": _found_as_json([found])})
    return 0 if found is None else 1


def _tell(found: Found, outcome: Outcome, say: Callable[[str], None]) -> None:
    violation = found.small.violation
    assert violation is not None
    say(
        f"seed {found.seed} ends in a violation after {len(found.run.steps)} steps "
        f"(the first in {outcome.seeds} seeds); shrunk to {len(found.small.steps)} steps by {found.replays} replays:\n"
    )
    say(str(found.small.script))
    say(f"{violation}")
    say(_history(violation))


def _history(violation: Violation) -> str:
    before = " ".join(event.name.lower() for event in violation.history) or "nothing"
    return f"before that, to page {violation.pages.first}: {before}"


def _try_all(arguments: argparse.Namespace) -> int:
    say = _sayer(arguments.json)
    say(f"{'fault':<24} {'found by seed':>13} {'steps':>6} {'shrunk to':>10}  race")
    outcomes = dict[str, Outcome]()
    begin = time.monotonic()
    for fault in ALL_FAULTS.values():
        outcome = outcomes[fault.name] = _search(arguments, fault.name)
        found = outcome.found
        if found is None or found.small.violation is None:
            say(f"{fault.name:<24} {'not found':>13}")
            continue
        race, source = found.small.violation.race, found.small.violation.source
        say(
            f"{fault.name:<24} {outcome.seeds:>13} {len(found.run.steps):>6} {len(found.small.steps):>10}  "
            f"{race} ({source})"
        )
    found_all = all(outcome.found is not None for outcome in outcomes.values())
    number = sum(outcome.found is not None for outcome in outcomes.values())
    say(f"{number} of {len(outcomes)} faults found, {time.monotonic() - begin:.1f} s")
    document = {
        "faults": {
            name: {"seeds": outcome.seeds, "steps": outcome.steps, "violations": _found_as_json([outcome.found])}
            for name, outcome in outcomes.items()
        }
    }
    _write_json(arguments.json, document)
    return 0 if found_all else 1


# --- Scripts ---


def _replay(arguments: argparse.Namespace) -> int:
    path: Path = arguments.replay
    script = read_script(path)
    say = _sayer(arguments.json)
    try:
        done = replay(script)
    except BalloonError as error:
        raise UsageError(f"{path}: {error}") from error
    for number, step in enumerate(done.steps, 1):
        say(f"{number:>4}  {step}")
    violation = done.violation
    if violation is None:
        expected = "" if script.expect is None else f"; the script expects {script.expect[0]}"
        say(f"no violation after {len(done.steps)} steps{expected}")
    else:
        say(f"\n{violation}\n{_history(violation)}")
    _write_json(arguments.json, {"script": str(path), "violations": _run_as_json(done)})
    return 0 if violation is None else 1


def read_script(path: Path) -> Script:
    """Return the script in the file at ``path``.

    Raises:
        UsageError: the script has a mistake, is not text, or cannot be read.
    """
    try:
        with path.open("rb") as opened:
            data = opened.read(SCRIPT_MAX + 1)
        if len(data) > SCRIPT_MAX:
            raise UsageError(f"--replay {path}: longer than {SCRIPT_MAX} bytes")
        return parse_script(data.decode("utf-8"), str(path), Vocabulary(ACTIONS, ALL_FAULTS))
    except OSError as error:
        raise UsageError(f"--replay {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--replay {path}: byte {error.start} is not UTF-8 text") from error


# --- JSON ---


def _sayer(target: str | None) -> Callable[[str], None]:
    # Standard output has one document at most.
    return lambda text: print(text, flush=True, file=sys.stderr if target == "-" else sys.stdout)


def _searched(arguments: argparse.Namespace, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "fault": arguments.fault,
        "first_seed": arguments.seed,
        "seeds": outcome.seeds,
        "steps": outcome.steps,
        "seconds": round(seconds, 3),
    }


def _found_as_json(found: Iterable[Found | None]) -> list[dict[str, Any]]:
    return [
        {"seed": each.seed, "steps": len(each.run.steps), **one}
        for each in found
        if each is not None
        for one in _run_as_json(each.small)
    ]


def _run_as_json(done: Run) -> list[dict[str, Any]]:
    violation = done.violation
    if violation is None:
        return []
    return [
        {
            "race": violation.race,
            "source": violation.source,
            "event": violation.event.name.lower(),
            "state": violation.state.name.lower(),
            "first_page": violation.pages.first,
            "pages": violation.pages.length,
            "reason": str(violation),
            "history": [event.name.lower() for event in violation.history],
            "script": str(done.script).splitlines(),
        }
    ]


def _write_json(target: str | None, document: dict[str, Any]) -> None:
    if target is None:
        return
    text = json.dumps(document, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")
