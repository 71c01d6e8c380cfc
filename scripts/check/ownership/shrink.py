"""Shrinks a run that ends in a violation: fewer steps, fewer pages, fewer changes from one actor to another."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

from scripts.check.ownership.page_state import PageEvent
from scripts.check.ownership.pages import Pages
from scripts.check.ownership.runs import Run, replay_loosely
from scripts.check.ownership.script import Script
from scripts.check.ownership.world.actor import Step
from scripts.check.ownership.world.world import ACTIONS, CHOOSING
from scripts.check.ownership.world.world_options import CHOICES, WorldOptions

TRIES_MAX: Final = 5000
"""Most replays of one shrinking."""

Cost = tuple[int, int, int, int]
"""Steps, options that are not the simplest, changes of actor, pages that were asked for: less is simpler."""


def shrunk(run: Run, on_try: Callable[[int, int], None] = lambda tries, steps: None) -> Run:
    """Return a smaller run that fails in the same way; ``run`` itself if none is found.

    ``on_try`` is told the number of replays so far and the steps of the smallest run.
    """
    return run if run.violation is None else _Shrinker(run, on_try).best


class _Shrinker:
    def __init__(self, run: Run, on_try: Callable[[int, int], None]) -> None:
        self.best = run
        self._on_try = on_try
        self._tries = 0
        self._seen: set[tuple[WorldOptions, tuple[Step, ...]]] = set()
        before = None
        while before != self.best.steps and self._tries < TRIES_MAX:
            before = self.best.steps
            self._drop_actors()
            self._drop_steps()
            self._simplify_options()
            self._drop_pairs()
            self._ask_for_less()
            self._bring_together()

    def _improve(self, script: Script) -> bool:
        # Try a script; keep its run if it is simpler and fails in the same way.
        key = script.options, script.steps
        if key in self._seen or self._tries >= TRIES_MAX:
            return False
        self._seen.add(key)
        self._tries += 1
        run = replay_loosely(script)
        if _failure(run) != _failure(self.best) or _cost(run) >= _cost(self.best):
            return False
        self.best = run
        self._on_try(self._tries, len(run.steps))
        return True

    def _try_steps(self, steps: list[Step]) -> bool:
        return self._improve(replace(self.best.script, steps=tuple(steps)))

    def _drop_actors(self) -> None:
        for actor in ACTIONS:
            self._try_steps([step for step in self.best.steps if step.actor != actor])

    def _drop_steps(self) -> None:
        # Delta debugging: halves, quarters and so on, from the end, where most of what is needless is undone.
        size = max(1, len(self.best.steps) // 2)
        while size:
            at = len(self.best.steps)
            while at > 0:
                at = min(at, len(self.best.steps))
                steps = list(self.best.steps)
                del steps[max(0, at - size) : at]
                self._try_steps(steps)
                at -= size
            size //= 2

    def _simplify_options(self) -> None:
        for name, words in CHOICES.items():
            options = replace(self.best.options, **{name: words[0]})
            self._improve(replace(self.best.script, options=options))

    def _drop_pairs(self) -> None:
        # What belongs together goes together: an allocation and its free, a question and its answer.
        if len(self.best.steps) > _PAIRS_MAX:
            return
        for first, second in _pairs(len(self.best.steps)):
            steps = list(self.best.steps)
            if second < len(steps):
                del steps[second], steps[first]
                self._try_steps(steps)

    def _ask_for_less(self) -> None:
        for at, step in enumerate(self.best.steps):
            if step.actor not in CHOOSING or not step.pages or at >= len(self.best.steps):
                continue
            for length in (0, 1, step.pages[0].length // 2):
                if step.action in ("allocate", "balloon") and length < step.pages[0].length:
                    steps = list(self.best.steps)
                    steps[at] = step._replace(pages=(Pages(step.pages[0].first, length),))
                    self._try_steps(steps)

    def _bring_together(self) -> None:
        # Move a step up to the one before it of the same actor, or the rest of the actor's steps down to it.
        for at in range(1, len(self.best.steps)):
            steps = list(self.best.steps)
            if at >= len(steps):
                break
            before = next((i for i in range(at - 1, -1, -1) if steps[i].actor == steps[at].actor), None)
            if before is not None and before < at - 1:
                steps.insert(before + 1, steps.pop(at))
                if not self._try_steps(steps):
                    steps = list(self.best.steps)
                    steps.insert(at - 1, steps.pop(before))
                    self._try_steps(steps)


_PAIRS_MAX: Final = 24


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((first, second) for first in range(count) for second in range(first + 1, count))


def _failure(run: Run) -> str | None:
    # What has to stay. All discards of what the device does not have are one failure: which it is depends on the guest.
    violation = run.violation
    if violation is None:
        return None
    return violation.event.name if violation.event is PageEvent.DISCARD else violation.race


def _cost(run: Run) -> Cost:
    steps = run.steps
    chosen = sum(getattr(run.options, name) != words[0] for name, words in CHOICES.items())
    changes = sum(one.actor != other.actor for one, other in pairwise(steps))
    pages = sum(each.length for step in steps if step.actor in CHOOSING for each in step.pages)
    return len(steps), chosen, changes, pages
