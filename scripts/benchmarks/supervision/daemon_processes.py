"""All processes of one daemon: the supervisor, the zygote, and the workers."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from protocol.units import KIB
from scripts.benchmarks.figures import BenchmarkError

_WORKER: Final = "vub worker"


def processes_of(pid: int) -> list[int]:
    """Return ``pid`` and its descendants."""
    return list(_tree(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from _tree(int(child))


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of the daemon ``pid``. The kernel's name of a process begins as its title does."""
    return [each for each in processes_of(pid) if _name(each).startswith(_WORKER)]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")


def proportional_bytes(pids: Sequence[int]) -> int:
    """Return the memory of these processes together, in which a page that several have counts once (PSS)."""
    return sum(_proportional_bytes(pid) for pid in pids)


def _proportional_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    if match is None:
        raise BenchmarkError("this system does not tell the proportional size of a process")
    return int(match[1]) * KIB
