"""host/peers/user_budget.py: a burst, then a rate, for each user."""

from host.peers.peers import EVENTS_BURST, EVENTS_PER_SECOND
from host.peers.user_budget import UserBudget


def test_budget_is_a_burst_and_then_a_rate_of_each_user() -> None:
    budget = UserBudget(EVENTS_BURST, EVENTS_PER_SECOND)
    assert sum(budget.take(1000, 5.0) for _ in range(2 * int(EVENTS_BURST))) == EVENTS_BURST
    assert budget.take(1001, 5.0)
    assert sum(budget.take(1000, 7.0) for _ in range(int(EVENTS_BURST))) == 2 * EVENTS_PER_SECOND
