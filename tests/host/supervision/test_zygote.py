"""The zygote: a worker is the process that was forked ahead, or one that is forked for it if that has been killed."""

import json
import subprocess
import sys

from tests.harness.processes import DEADLINE

PROGRAM = """
import json, os, signal, socket, time
from pathlib import Path
from host.supervision.zygote import start_zygote


def confine():
    confined = os.getpid()

    def run(number, end):
        end.send(json.dumps([number, os.getpid(), confined, os.getppid()]).encode())

    return run


def ask(number):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert zygote.fork(number, theirs)
    theirs.close()
    return json.loads(ours.recv(100))


def children():
    return map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def spare():
    while True:
        for pid in children():
            if Path(f"/proc/{pid}/comm").read_text() == "vub spare\\n" and pid not in [each[1] for each in answers]:
                return pid
        time.sleep(0.005)


zygote = start_zygote(lambda: confine)
answers = [ask(1)]
expected = spare()
answers.append(ask(2))
killed = spare()
os.kill(killed, signal.SIGKILL)
os.waitpid(killed, 0)
answers.append(ask(3))
last = spare()
zygote.close()
os.waitpid(last, 0)
print(json.dumps({"answers": answers, "spare": expected, "killed": killed, "own": os.getpid()}))
"""


def test_worker_is_the_spare_process() -> None:
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE, text=True).stdout
    found = json.loads(output)
    numbers, pids, confined, parents = zip(*found["answers"], strict=True)
    assert numbers == (1, 2, 3)
    assert pids == confined
    assert pids[1] == found["spare"]
    assert len({*pids, found["killed"]}) == 4
    assert set(parents) == {found["own"]}
