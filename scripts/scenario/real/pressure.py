"""The host's memory pressure as its kernel tells it (PSI, Linux 4.20: Documentation/accounting/psi.rst)."""

from pathlib import Path


class Pressure:
    """Reads ``file``: /proc/pressure/memory, or memory.pressure of a cgroup of version 2."""

    def __init__(self, file: Path = Path("/proc/pressure/memory")) -> None:
        self._file = file

    def some_avg10(self) -> float | None:
        """Return the share of the last ten seconds in which some task waited for memory, in percent; None where the
        kernel does not tell it."""
        try:
            return parse_some_avg10(self._file.read_text(encoding="ascii"))
        except OSError:
            return None


def parse_some_avg10(text: str) -> float | None:
    """Return ``avg10`` of the line ``some`` in the text of a pressure file, None without one."""
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind == "some":
            values = dict(field.partition("=")[::2] for field in fields)
            try:
                return float(values["avg10"])
            except (KeyError, ValueError):
                return None
    return None
