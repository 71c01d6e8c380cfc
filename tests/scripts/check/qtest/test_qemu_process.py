"""A QEMU over its qtest socket, played by a script that answers what it likes."""

import sys
from contextlib import closing
from pathlib import Path

import pytest

from scripts.check.machine.memory_file import MemoryFile
from scripts.check.qtest import qemu_process
from scripts.check.qtest.qemu_process import QemuProcess
from scripts.check.verdict import TargetError

pytestmark = pytest.mark.processes

PROGRAM = f"""#!{sys.executable} -SI
import socket, sys
place = next(word[5:] for word in sys.argv if word.startswith("unix:") and word.endswith("qtest"))
qtest = socket.socket(socket.AF_UNIX)
qtest.connect(place)
lines = qtest.makefile("rb")
while lines.readline():
    answer = {{answer!r}}
    for _ in range({{times}}):
        qtest.sendall(answer)
"""


@pytest.mark.parametrize(
    ("answer", "times", "says"),
    [
        (b"OK\n", 1, r"with 'OK'"),
        (b"OK zz\n", 1, r"with 'OK zz'"),
        (b"O" * 5000, 1, r"with 'OO"),
        (b"IRQ raise 1\n", 1 << 60, r"with interrupts alone"),
    ],
)
def test_an_answer_that_is_no_number_is_told_as_it_is(
    answer: bytes, times: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_process, "ANSWER_SECONDS", 0.2)
    program = tmp_path / "qemu"
    program.write_text(PROGRAM.format(answer=answer, times=times))
    program.chmod(0o755)
    says = f"QEMU answer.* 'readl 0x8' {says}"
    with (
        closing(MemoryFile(1 << 20)) as memory,
        closing(QemuProcess(str(program), memory.fd, memory.size, "")) as qemu,
        pytest.raises(TargetError, match=says),
    ):
        qemu.read(8, 4)
