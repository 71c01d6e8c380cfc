"""The text of a script: it says the same again, and a mistake is told with its line and column."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import UsageError
from scripts.check.ownership.faults.all_faults import ALL_FAULTS
from scripts.check.ownership.pages import Pages, amount
from scripts.check.ownership.script import Script, Vocabulary, parse_script
from scripts.check.ownership.world.actor import Step
from scripts.check.ownership.world.guest_side import TOTAL_PAGES
from scripts.check.ownership.world.world import ACTIONS
from scripts.check.ownership.world.world_options import CHOICES, WorldOptions

VOCABULARY = Vocabulary(ACTIONS, ALL_FAULTS)

PLACES = st.tuples(st.integers(0, TOTAL_PAGES - 64), st.integers(1, 64)).map(lambda pair: Pages(*pair))
RANGES = st.one_of(PLACES, st.integers(0, 300).map(amount))
ACTOR_ACTIONS = [(actor, action) for actor, actions in ACTIONS.items() for action in sorted(actions)]
STEPS = st.builds(
    lambda who, pages: Step(who[0], who[1], tuple(pages)), st.sampled_from(ACTOR_ACTIONS), st.lists(RANGES, max_size=3)
)
OPTIONS = st.fixed_dictionaries({name: st.sampled_from(words) for name, words in CHOICES.items()})


@settings(max_examples=40)
@given(
    OPTIONS, st.lists(STEPS, max_size=6), st.sampled_from([None, *ALL_FAULTS]), st.sampled_from([None, ("race", "A-1")])
)
def test_script_is_read_as_it_was_written(
    options: dict[str, str], steps: list[Step], fault: str | None, expect: tuple[str, str] | None
) -> None:
    script = Script(options=WorldOptions(**options), steps=tuple(steps), fault=fault, expect=expect)
    assert parse_script(str(script), "name", VOCABULARY) == script


def test_comments_and_empty_lines_are_passed_over() -> None:
    text = "# one\n\nworld reporter scan  # the rest is the simplest\n  reporter begin 0+1024 # two\n"
    script = parse_script(text, "name", VOCABULARY)
    assert script.options == WorldOptions(reporter="scan")
    assert script.steps == (Step("reporter", "begin", (Pages(0, 1024),)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s:1:1: expected `world`, found the end of the file"),
        ("reporter begin\n", "s:1:1: expected `world`, found 'reporter'"),
        ("world rung split", "s:1:7: expected one of ring, reporter, .*, such as ring, found 'rung'"),
        ("world ring", "s:1:11: expected one of split, packed, found the end of the line"),
        ("world ring split ring packed", "s:1:18: expected one of reporter, .* found 'ring'"),
        ("world\nfault nothing", "s:2:7: expected the name of a fault, found 'nothing'"),
        ("world\nfault gaps-filled on", "s:2:19: expected the end of the line, found 'on'"),
        ("world\ncpu3 free 0+1", r"s:2:1: expected an actor \(balloon, cpu1, .*\), such as cpu\d, found 'cpu3'"),
        ("world\n\n  cpu1 fre 0+1", r"s:3:8: expected what cpu1 does \(allocate, exhaust, free, touch\), such as free"),
        ("world\ncpu1 free 12", r"s:2:11: expected a range of pages, such as 512\+4, found '12'"),
        ("world\ncpu1 free 4095+2", r"s:2:11: expected pages below 4096, found '4095\+2'"),
        ("world\ncpu1 free 4095+0", "s:2:11: expected a range of pages"),
        ("world\ncpu1", "s:2:5: expected what cpu1 does"),
        ("world\nexpect late-discard", "s:2:20: expected a clause, found the end of the line"),
        ("world\nexpect a b\ncpu1 free 0+1", "s:3:1: expected nothing after `expect`, found 'cpu1'"),
    ],
)
def test_mistake_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        parse_script(text, "s", VOCABULARY)


@settings(max_examples=30)
@given(st.text(max_size=50))
def test_any_text_has_its_mistake_told(text: str) -> None:
    for beginning in ("", "world\n", "world\ncpu1 "):
        with pytest.raises(UsageError, match=r"\As:\d+:\d+: [^\n]*\Z"):
            parse_script(f"{beginning}{text}\n\N{BULLET}", "s", VOCABULARY)
