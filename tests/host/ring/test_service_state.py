"""The states of a running queue: which transitions there are, and what holds in all of them."""

from itertools import product

from host.ring.service_state import HAS_WORKER, IS_OVER, TRANSITIONS, ServiceEvent, ServiceState

ENDS_OF_A_TURN = {ServiceEvent.EMPTY, ServiceEvent.MORE, ServiceEvent.SPURIOUS, ServiceEvent.BREAK}


def test_turn_ends_in_every_state_with_a_worker_and_in_no_other() -> None:
    for state, event in product(ServiceState, ENDS_OF_A_TURN):
        assert ((state, event) in TRANSITIONS) is (state in HAS_WORKER), (state, event)


def test_kick_is_taken_in_every_state() -> None:
    assert {state for state, event in TRANSITIONS if event is ServiceEvent.KICK} == set(ServiceState)


def test_queue_that_is_over_never_works_again() -> None:
    for (state, event), after in TRANSITIONS.items():
        if state in IS_OVER:
            assert after in IS_OVER, (state, event)


def test_transitions_never_give_the_ring_to_a_second_worker() -> None:
    """WORKING is entered with a new worker: never from a state that keeps the old one."""
    for (state, event), after in TRANSITIONS.items():
        if after is ServiceState.WORKING and state in HAS_WORKER:
            assert event in ENDS_OF_A_TURN, (state, event)


def test_stop_ends_every_state_that_is_not_over() -> None:
    for state in set(ServiceState) - IS_OVER:
        assert TRANSITIONS[state, ServiceEvent.STOP] in IS_OVER
