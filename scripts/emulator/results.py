"""The results of the trials, as a table and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A trial with one ring format. ``note`` is what was observed, or why it failed; it took ``seconds``."""

    ring: str
    trial: str
    passed: bool
    note: str
    seconds: float


def table_lines(results: Sequence[Result]) -> list[str]:
    """Return the table: one line a result, columns aligned."""
    rows = [("ring", "trial", "", "seconds", "seen")]
    rows += [(one.ring, one.trial, "ok" if one.passed else "FAILED", f"{one.seconds:.1f}", one.note) for one in results]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in rows
    ]


def as_dict(qemu: str, results: Sequence[Result]) -> dict[str, object]:
    """Return the results for JSON; ``qemu`` is the version line."""
    return {"qemu": qemu, "results": [asdict(one) for one in results]}
