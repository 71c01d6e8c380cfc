"""Scores of runs in a file, one JSON object a line, so that a long comparison goes on where it was cut off.

A line has the scenario's name, the policy, the seed, a digest of the scenario as it was played, and the score. Lines of
a scenario that has been changed since do not count. A change of a policy's code is not seen.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from protocol.errors import BalloonError
from scripts.scenario.compare.jobs import Job
from scripts.scenario.scenario import Scenario
from scripts.scenario.score import Score


def _digest(scenario: Scenario) -> str:
    return hashlib.sha256(repr(scenario).encode()).hexdigest()[:16]


class KeptScores:
    """The scores of ``scenarios`` by job, those of the file first; :meth:`add` appends to it. Without a file they are
    kept in memory alone."""

    def __init__(self, scenarios: Sequence[Scenario], file: TextIO | None) -> None:
        self.scores: dict[Job, Score] = {}
        self._scenarios = scenarios
        self._digests = [_digest(scenario) for scenario in scenarios]
        self._file = file
        if file is not None:
            variants = {digest: variant for variant, digest in enumerate(self._digests)}
            file.seek(0)
            line = "\n"
            for line in file:
                self._read(line, variants)
            if not line.endswith("\n"):
                file.write("\n")

    def _read(self, text: str, variants: dict[str, int]) -> None:
        try:
            line = json.loads(text)
            if (variant := variants.get(line["of"])) is not None:
                self.scores[Job(variant, int(line["seed"]))] = Score(**line["score"])
        except (ValueError, TypeError, KeyError):
            return  # cut off in the middle: that run is played again

    def add(self, job: Job, score: Score) -> None:
        """Keep the score of a run.

        Raises:
            BalloonError: the file cannot be written.
        """
        self.scores[job] = score
        if self._file is None:
            return
        scenario = self._scenarios[job.variant]
        line = {
            "scenario": scenario.name,
            "policy": scenario.policy.name,
            "seed": job.seed,
            "of": self._digests[job.variant],
            "score": asdict(score),
        }
        try:
            self._file.write(f"{json.dumps(line)}\n")
            self._file.flush()
        except OSError as error:
            raise BalloonError(f"{self._file.name}: {error.strerror or error}") from error


@contextmanager
def kept_scores(scenarios: Sequence[Scenario], path: Path | None) -> Iterator[KeptScores]:
    """Give the scores that are kept in the file at ``path``, which is made where it does not exist.

    Raises:
        BalloonError: it cannot be read or written.
    """
    if path is None:
        yield KeptScores(scenarios, None)
        return
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise BalloonError(f"--scores {path}: {error.strerror or error}") from error
    with file:
        yield KeptScores(scenarios, file)
