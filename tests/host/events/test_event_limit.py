"""A bound on events, and an account of those beyond it."""

from hypothesis import given
from hypothesis import strategies as st

from host.events.event_limit import EVENTS_PER_SECOND, EventLimit

NAMES = ("message_refused", "features")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0, 0.02)), max_size=500))
def test_events_of_a_second_are_bounded_and_all_are_counted(events: list[tuple[str, float]]) -> None:
    limit, now = EventLimit(), 1000.0
    written: list[tuple[str, int]] = []
    accounted = dict.fromkeys(NAMES, 0)
    for name, later in events:
        now += later
        if limit.allows(name, now):
            accounted[name] += 1 + limit.take_suppressed(name)
            written.append((name, int(now)))
    for name in limit.suppressed:
        accounted[name] += limit.take_suppressed(name)
    assert max((written.count(each) for each in written), default=0) <= EVENTS_PER_SECOND
    assert accounted == {name: sum(event == name for event, _ in events) for name in NAMES}
    assert limit.suppressed == ()


def test_event_name_does_not_use_up_the_share_of_another() -> None:
    limit = EventLimit()
    assert [limit.allows("message_refused", 7.5) for _ in range(EVENTS_PER_SECOND + 1)][-2:] == [True, False]
    assert limit.allows("features", 7.9)
    assert limit.allows("message_refused", 8.0)
    assert limit.take_suppressed("message_refused") == 1
