"""Both halves interleaved: no seed ends in a violation, a run is repeated by its script, every actor comes up."""

from collections import Counter
from dataclasses import replace

import pytest

from scripts.check.ownership.page_owners import PageOwners
from scripts.check.ownership.page_state import MOVES, PageEvent, PageState
from scripts.check.ownership.pages import Pages
from scripts.check.ownership.runs import ReplayError, replay, replay_loosely, run_seed
from scripts.check.ownership.script import Script
from scripts.check.ownership.world.actor import Step
from scripts.check.ownership.world.world import ACTIONS
from scripts.check.ownership.world.world_options import WorldOptions

NEVER = {("device-deflate", "discard"), ("device-deflate", "put-back")}
"""Nothing is discarded for a deflate."""


def test_no_seed_ends_in_a_violation() -> None:
    for seed in range(120):
        run = run_seed(seed, steps=40)
        assert run.violation is None, (seed, str(run.script))
        assert len(run.steps) == 40


@pytest.mark.long
def test_no_long_run_ends_in_a_violation_and_all_that_may_happen_does(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = Counter[tuple[PageState, PageEvent]]()
    steps = Counter[tuple[str, str]]()
    enter = PageOwners._enter

    def counting(owners: PageOwners, event: PageEvent, pages: Pages, state: PageState) -> None:
        moves[owners.state(pages.first), event] += 1
        enter(owners, event, pages, state)

    monkeypatch.setattr(PageOwners, "_enter", counting)
    for seed in range(1000, 1120):
        run = run_seed(seed)
        assert run.violation is None, (seed, str(run.script))
        steps.update((step.actor, step.action) for step in run.steps)
    everything = {(actor, action) for actor, actions in ACTIONS.items() for action in actions}
    assert everything - steps.keys() <= {*NEVER, ("device-hinting", "put-back")}
    # Our device discards a hinted block before it gives it back, not after it.
    assert MOVES.keys() - moves.keys() == {(PageState.HINT_USED, PageEvent.DISCARD)}


@pytest.mark.parametrize("seed", [3, 4])
def test_seed_gives_the_same_run_again(seed: int) -> None:
    first, second = run_seed(seed, steps=150), run_seed(seed, steps=150)
    assert (first.options, first.steps, first.seconds) == (second.options, second.steps, second.seconds)


@pytest.mark.parametrize("seed", range(10, 16))
def test_script_gives_the_same_run_as_the_seed(seed: int) -> None:
    run = run_seed(seed, steps=150)
    for again in (replay(run.script), replay_loosely(run.script)):
        assert (again.steps, again.seconds, again.violation) == (run.steps, run.seconds, None)


def test_steps_that_cannot_be_taken_are_refused_or_left_out() -> None:
    run = run_seed(1, steps=40)
    script = replace(run.script, steps=(Step("reporter", "return"), *run.steps))
    with pytest.raises(ReplayError, match=r"^step 1 of 41 cannot be taken: reporter return$"):
        replay(script)
    assert replay_loosely(script).steps == run.steps


def test_step_about_other_pages_is_refused() -> None:
    steps = (Step("reporter", "begin", (Pages(0, 1024),)),)
    with pytest.raises(ReplayError, match=r"^step 1 is about other pages here: reporter begin 3072\+1024 2048\+1024"):
        replay(Script(options=WorldOptions(), steps=steps))


def test_script_that_goes_on_after_its_violation_is_refused() -> None:
    steps = replay_loosely(Script(options=WorldOptions(), steps=BEGINNING, fault="reported-twice")).steps
    assert len(steps) == 2
    with pytest.raises(ReplayError, match=r"^step 2 of 3 is the last: double-report: "):
        replay(Script(options=WorldOptions(), steps=(*steps, Step("reporter", "collect")), fault="reported-twice"))


def test_block_that_lies_elsewhere_keeps_its_name() -> None:
    steps = (
        Step("cpu1", "allocate", (Pages(777, 1),)),
        Step("cpu1", "touch", (Pages(777, 1),)),
        Step("cpu1", "free", (Pages(777, 1),)),
        Step("cpu1", "touch", (Pages(777, 1),)),
    )
    run = replay_loosely(Script(options=WorldOptions(), steps=steps))
    (page,) = run.steps[0].pages
    assert [(step.action, step.pages) for step in run.steps] == [
        ("allocate", (page,)),
        ("touch", (page,)),
        ("free", (page,)),
    ]
    assert page != Pages(777, 1)


def test_pages_of_a_step_are_those_of_this_run() -> None:
    """What a script says of a step that has no choice of pages is left behind."""
    steps = tuple(step._replace(pages=(Pages(5, 7),)) for step in (*BEGINNING, Step("operator", "start-hints")))
    run = replay_loosely(Script(options=WorldOptions(), steps=steps))
    assert [step.pages for step in run.steps] == [(Pages(3072, 1024), Pages(2048, 1024))] * 2 + [()]


def test_time_is_that_of_the_steps_and_of_the_reporters_delay() -> None:
    run = replay_loosely(Script(options=WorldOptions(), steps=BEGINNING))
    assert run.seconds == pytest.approx(0.1 + 0.001)


BEGINNING = Step("reporter", "begin"), Step("reporter", "report")
