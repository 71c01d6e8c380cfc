"""The demonstration's processes: read while they write, and gone afterwards."""

import json
import sys
import time
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from scripts.child_processes import Child, Children, LineTail

pytestmark = pytest.mark.processes


def wait_until_ended(child: Child) -> None:
    """Wait for the end of a process that ends by itself."""
    child.process.wait(10)


def test_tail_gives_whole_lines_only_and_each_once(tmp_path: Path) -> None:
    tail = LineTail(tmp_path / "events")
    assert tail.read() == []
    with (tmp_path / "events").open("w") as file:
        file.write('{"a": 1}\n{"b"')
        file.flush()
        assert tail.read() == ['{"a": 1}']
        assert tail.read() == []
        file.write(": 2}\n")
        file.flush()
        assert tail.read() == ['{"b": 2}']


def test_child_is_followed_by_its_event_file_and_its_output(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        script = (
            f"print('phase fill'); open({str(tmp_path / 'a')!r}, 'w').write('{json.dumps({'event': 'booted'})}\\n')"
        )
        child = children.start("VM A", [sys.executable, "-c", script], "a")
        wait_until_ended(child)
        assert child.new_events() == [{"event": "booted"}]
        assert child.output.read() == ["phase fill"]


def test_files_of_children_with_dots_in_their_names_are_their_own(tmp_path: Path) -> None:
    started = []
    with Children(tmp_path) as children:
        for name in ("web.1", "web.2"):
            started.append(children.start(name, ["sh", "-c", f"echo {name}; echo no {name} >&2"], name))
            wait_until_ended(started[-1])
        first, second = started
        assert (first.output.read(), second.output.read()) == (["web.1"], ["web.2"])
        assert "no web.1" in first.complaints.read_text()


def test_event_is_waited_for_until_the_process_ends_or_time_is_up(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("VM A", ["sleep", "60"], "a")
        events: list[dict[str, object]] = [{"event": "first"}, {"event": "booted", "n": 1}]
        (tmp_path / "a").write_text("".join(json.dumps(event) + "\n" for event in events))
        assert child.wait_for_event("booted") == {"event": "booted", "n": 1}
        with pytest.raises(BalloonError, match=r"^VM A: no event finished$"):
            child.wait_for_event("finished", 0.01)
        child.kill()
        with pytest.raises(BalloonError, match=r"^VM A ended \(killed by SIGKILL\): no message$"):
            child.wait_for_event("finished")


def test_end_of_a_process_is_told_with_its_last_line(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("VM A", ["sh", "-c", "echo first >&2; echo balloon-guest: no socket >&2; exit 3"], "a")
        wait_until_ended(child)
        assert child.how_it_ended() == "VM A ended (exit status 3): balloon-guest: no socket"
        assert children.unexpected_end() == child.how_it_ended()
        assert children.unexpected_end(allowed=child) is None
        killed = children.start("VM B", ["sh", "-c", "kill -9 $$"], "b")
        wait_until_ended(killed)
        assert killed.how_it_ended() == "VM B ended (killed by SIGKILL): no message"


def test_figures_of_a_process_are_kept_after_its_end(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        hog = "import time; data = b'x' * (100 << 20); print(len(data), flush=True); time.sleep(60)"
        child = children.start("VM B", [sys.executable, "-c", hog], "b")
        while str(100 << 20) not in child.output.read():
            time.sleep(0.01)
        assert not child.ended()
        child.kill()
        assert child.ended()
        assert child.process.returncode == -9
        assert (child.peak_resident_bytes or 0) >= 100 << 20
        child.kill()  # as before


def test_exit_ends_every_process_even_one_that_ignores_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.child_processes.STOP_SECONDS", 0.2)
    with Children(tmp_path) as children:
        polite = children.start("polite", ["sleep", "60"], "a")
        stubborn = children.start("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], "b")
        while not stubborn.output.read():
            time.sleep(0.01)
    assert polite.process.returncode == -15
    assert stubborn.process.returncode == -9


def test_program_that_does_not_exist_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.child_processes.shutil.which", lambda name: None)
    with Children(tmp_path) as children, pytest.raises(BalloonError, match="cannot start VM A: No such file"):
        children.start("VM A", [str(tmp_path / "missing")], "a")
