"""A table of a TOML file, read key by key: a mistake is one line with its place, what is allowed, the nearest name.

::

    table = Table({"memory": "512M", "strat": "3s"}, "vm[2]")
    table.size("memory")    # 536870912
    table.finish()          # UsageError: vm[2].strat: unknown key, did you mean start? (known are memory, start)
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from protocol.errors import UsageError
from protocol.units import parse_size

LONGEST: Final = 1e9
"""Seconds; about thirty years."""

VALUE_MOST: Final = 80
"""Most characters of a value or a key in an error message."""

MESSAGE_MOST: Final = 600
"""Most characters of what is said of one value."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(?:\[\d+\])?")
"""A key, or a place in its list."""

LARGEST: Final = 1 << 60
"""The largest whole number where there is no other limit."""

_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_seconds(text: str) -> float:
    """Return the seconds that ``text`` means: a number and one of ms, s, m, h, d.

    Raises:
        UsageError: it is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a time: {text!r} (write for example 250ms, 90s, 10m or 1h)")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST:
        raise UsageError(f"{text!r} is longer than thirty years")
    return seconds


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean X?`` for the name of ``known`` that is most like ``name``, "" where none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]}?" if found else ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _shown(value: object) -> str:
    # A value for an error message, on one line and not too long.
    try:
        return _cut(repr(value), VALUE_MOST)
    except ValueError:  # an integer with thousands of digits (sys.set_int_max_str_digits)
        return "a number with thousands of digits"


def _as_float(value: float) -> float:
    # TOML has whole numbers of any length; what no float holds is out of every range.
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class Table:
    """One table; ``path`` is its place in the file, "" for the file itself. Methods return ``default`` without the key.

    Every method raises UsageError for a value of the wrong kind, and for a key that is missing and has no default.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self.path = path
        self._known: list[str] = []

    def place(self, key: str) -> str:
        """Return the place of ``key`` in the file, quoted where TOML would quote it."""
        key = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
        return f"{self.path}.{_cut(key, VALUE_MOST)}" if self.path else _cut(key, VALUE_MOST)

    def mistake(self, key: str, problem: object) -> UsageError:
        """Return the error for the value of ``key``."""
        return UsageError(f"{self.place(key)}: {_cut(str(problem), MESSAGE_MOST)}")

    def has(self, key: str) -> bool:
        """Whether the table has ``key``."""
        self._know(key)
        return key in self._values

    def is_text(self, key: str) -> bool:
        """Whether the value of ``key`` is a string."""
        return self.has(key) and isinstance(self._values[key], str)

    def text(self, key: str, default: str | None = None, *, allowed: Iterable[str] = ()) -> str:
        """Return a string, one of ``allowed`` if that is given."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.mistake(key, f"{_shown(value)} is not a string")
        names = list(allowed)
        if names and value not in names:
            raise self.mistake(key, f"unknown {_shown(value)}{nearest(value, names)} (allowed are {', '.join(names)})")
        return value

    def size(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return a size in bytes: a string such as "512M", or a whole number."""
        value = self._get(key, default)
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except UsageError as error:
                raise self.mistake(key, error) from error
        return self._within(key, value, least, LARGEST)

    def seconds(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """Return a time in seconds: a string such as "90s", or a number of seconds."""
        value = self._get(key, default)
        if isinstance(value, str):
            try:
                value = parse_seconds(value)
            except UsageError as error:
                raise self.mistake(key, error) from error
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.mistake(key, f"{_shown(value)} is not a time (write for example 90s)")
        value = _as_float(value)
        if not least <= value <= LONGEST:
            raise self.mistake(key, f"{value:g} s is not from {least:g} s to {LONGEST:g} s")
        return float(value)

    def share(self, key: str, default: float | None = None, *, most: float = 1.0) -> float:
        """Return a share from 0 to ``most``: a string such as "10%", or a number such as 0.1."""
        value = self._get(key, default)
        if isinstance(value, str):
            match = _PERCENT.fullmatch(value.strip())
            if match is None:
                raise self.mistake(key, f'{_shown(value)} is not a share (write for example "10%")')
            value = float(match[1]) / 100
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.mistake(key, f'{_shown(value)} is not a share (write for example "10%")')
        value = _as_float(value)
        if not 0 <= value <= most:
            raise self.mistake(key, f"{value * 100:.6g}% is not from 0% to {most * 100:g}%")
        return float(value)

    def count(self, key: str, default: int | None = None, *, least: int = 0, most: int = LARGEST) -> int:
        """Return a whole number from ``least`` to ``most``."""
        return self._within(key, self._get(key, default), least, most)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.mistake(key, f"{_shown(value)} is neither true nor false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings, empty without the key."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.mistake(key, "not a list of strings")
        return tuple(value)

    def table(self, key: str) -> "Table":
        """Return a table, empty without the key."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.mistake(key, f"not a table (write [{self.place(key)}])")
        return Table(value, self.place(key))

    def tables(self, key: str) -> tuple["Table", ...]:
        """Return the tables of an array, none without the key. The place of the first one is ``key[0]``."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.mistake(key, f"not an array of tables (write [[{self.place(key)}]])")
        return tuple(Table(item, f"{self.place(key)}[{number}]") for number, item in enumerate(value))

    def rest(self) -> dict[str, Any]:
        """Return all keys that were not asked for, with plain values.

        Raises:
            UsageError: one of them is a list, a table or a date.
        """
        values = {key: value for key, value in self._values.items() if key not in self._known}
        for key, value in values.items():
            if not isinstance(value, str | bool | int | float):
                raise self.mistake(key, "not a string, a number, true or false")
        return values

    def finish(self) -> None:
        """Raise UsageError for a key that was never asked for."""
        for mistake in self.unknown():
            raise mistake

    def unknown(self) -> Iterator[UsageError]:
        """Yield the mistake of each key that was never asked for."""
        for key in self._values:
            if key not in self._known:
                near = nearest(key, self._known)
                yield self.mistake(key, f"unknown key{near} (known are {', '.join(sorted(self._known))})")

    def _get(self, key: str, default: Any) -> Any:
        self._know(key)
        value = self._values.get(key, default)
        if value is None:
            near = difflib.get_close_matches(key, self._values.keys() - self._known, n=1)
            raise self.mistake(key, f"missing (there is {near[0]}, which is like it)" if near else "missing")
        return value

    def _know(self, key: str) -> None:
        if key not in self._known:
            self._known.append(key)

    def _within(self, key: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mistake(key, f"{_shown(value)} is not a whole number")
        if not least <= value <= most:
            if most < LARGEST:
                raise self.mistake(key, f"{_shown(value)} is not from {least} to {most}")
            raise self.mistake(key, f"below {least}" if value < least else f"above {LARGEST} (1 EiB)")
        return value
