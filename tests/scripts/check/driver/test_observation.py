"""Which session is the driver's."""

from scripts.check.driver.observation import Observed


def test_session_without_features_is_a_visit_and_not_the_driver() -> None:
    seen = Observed()
    seen.take_events([{"event": "connected"}, {"event": "disconnected"}, {"event": "connected"}])
    assert (seen.visits, [one["event"] for one in seen.events]) == (1, ["connected"])
    seen.take_events([{"event": "features"}, {"event": "disconnected"}])
    assert (seen.visits, len(seen.named("disconnected"))) == (1, 1)
