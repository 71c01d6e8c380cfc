"""How a run is judged."""

import os
import time

from scripts.check.hostile.command import document, ending
from scripts.check.hostile.daemon_state import DaemonState
from scripts.check.hostile.other_load import OtherLoad
from scripts.check.hostile.run import GROWTH, Outcome, Period, Stall, memory_faults, stall_faults
from scripts.check.hostile.samples import Figures


def state(sessions: int, private: int) -> DaemonState:
    return DaemonState(
        sessions=sessions, resident=private, proportional=private, private=private, descriptors=28, threads=9
    )


def test_stall_that_the_machine_explains_is_no_fault() -> None:
    assert stall_faults([Stall(1.0, 0.9, 0.88, 0.0, 0.5, ()), Stall(2.0, 0.051, 0.0, 0.002, 0.5, ())]) == []


def test_stall_of_the_daemons_own_is_a_fault() -> None:
    faults = stall_faults(
        [Stall(1.0, 0.9, 0.2, 0.88, 0.5, ()), Stall(2.0, 0.08, 0.01, 0.0, 0.5, ()), Stall(3.0, 0.3, 0.05, 0.1, 0.5, ())]
    )
    assert faults == [
        "2 reports of the good machine took over 50 ms that the machine does not explain, one 300 ms, of which 200 ms"
    ]


def test_memory_is_compared_from_the_middle_on() -> None:
    assert memory_faults([]) == []
    assert memory_faults([state(0, 20 << 20), state(1000, 50 << 20)]) == []
    flat = [state(0, 20 << 20), state(1000, 30 << 20), state(2000, 50 << 20), state(3000, (50 << 20) + GROWTH)]
    assert memory_faults(flat) == []
    assert memory_faults([*flat, state(4000, 60 << 20)]) == [
        "the daemon's private memory has grown by 10.0 MiB from session 2000 to session 4000"
    ]


def test_end_of_a_run_in_words_and_as_json() -> None:
    stall = Stall(3.0, 0.3, 0.1, 0.0, 0.5, ("session 4 (running): reports; closes",))
    outcome = Outcome(
        seed=5,
        pid=6,
        periods=[Period("all", Figures(100, 0.001, 0.002, 0.3), Figures(100, 0.0001, 0.0002, 0.1), 1.5)],
        states=[state(0, 1 << 20)],
        stalls=[stall],
        not_brought_up={"no reply": 2},
        faults=["something"],
    )
    lines = list(ending(outcome))
    assert "2 sessions could not be brought up: no reply" in lines
    assert "    session 4 (running): reports; closes" in lines
    assert lines[-1] == "FAIL: something"
    written = document(outcome)
    assert written["verdict"] == "FAIL"
    assert written["periods"][0]["good"]["longest"] == 0.3
    assert written["periods"][0]["other_processors"] == 1.5
    assert written["daemon"][0]["descriptors"] == 28
    assert written["stalls"][0]["sessions"] == list(stall.sessions)
    outcome.faults.clear()
    assert list(ending(outcome))[-1].startswith("PASS")


def test_load_of_others_is_no_less_than_none() -> None:
    load = OtherLoad([1 << 30])
    stop = time.monotonic() + 0.05
    while time.monotonic() < stop:
        pass
    assert 0.0 <= load.processors() <= (os.cpu_count() or 1) + 1
