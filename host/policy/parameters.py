"""Parameters of policies: fields of a frozen dataclass, each with a default, a meaning and the values it may have.

A value comes typed, from a program or a TOML file, or as text from a command line. Either is checked here.

Example::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class MomParameters:
        pressure_threshold: float = parameter(0.20, "share of the host's memory", least=0, most=1)
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeVar, get_type_hints

from protocol.errors import UsageError
from protocol.units import format_size, parse_size

Value = float | int | str | bool
"""What a parameter is given as. bool is listed for the reader: it is an int."""

INTERVAL_LEAST: Final = 0.05
INTERVAL_MOST: Final = 86400.0

T = TypeVar("T")


class Parameters(Protocol):
    """A dataclass of parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


P = TypeVar("P", bound=Parameters)


@dataclasses.dataclass(frozen=True, slots=True)
class PerVm:
    """A number for each virtual machine: ``default``, or that of its name in ``named``.

    As text: ``1000`` or ``1000,web=2000,db=500``.
    """

    default: float
    named: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, vm: str) -> float:
        """Return the number of the virtual machine with this name."""
        return self.named.get(vm, self.default)

    def __str__(self) -> str:
        return ",".join([f"{self.default:g}", *(f"{name}={value:g}" for name, value in self.named.items())])


def parameter(
    default: T,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    is_size: bool = False,
) -> T:
    """Return the default of a parameter: a field with its ``meaning`` for people and the values that it may have, from
    ``least`` to ``most`` or one of ``choices``. ``is_size`` says that it is in bytes and is written like ``512M``."""
    about = {"meaning": meaning, "least": least, "most": most, "choices": choices, "is_size": is_size}
    return dataclasses.field(default=default, metadata=about)


def interval(default: float) -> float:
    """Return the field of the seconds between two decisions."""
    return parameter(default, "seconds from one decision to the next", least=INTERVAL_LEAST, most=INTERVAL_MOST)


def nearest(typed: str, names: Iterable[str]) -> str:
    """Return ``, did you mean NAME?`` for the name that is most like what was typed, "" if none is like it."""
    close = difflib.get_close_matches(typed, list(names), 1)
    return f", did you mean {close[0]}?" if close else ""


def make_parameters(kind: type[P], values: Mapping[str, Value], policy: str) -> P:
    """Return the parameters of ``policy``, with ``values`` in place of defaults.

    Raises:
        UsageError: a name or a value that it does not have; the line says which there are.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    types = get_type_hints(kind)
    given: dict[str, object] = {}
    for name, value in values.items():
        known = name.replace("-", "_")
        if known not in fields:
            has = f"it has {', '.join(fields)}" if fields else "it has no parameters"
            raise UsageError(f"{policy} has no parameter {name!r}{nearest(known, fields)} ({has})")
        if known in given:
            raise UsageError(f"{policy}: parameter {known} comes twice")
        given[known] = _checked(value, types[known], fields[known].metadata, f"{policy}: {name}")
    return kind(**given)


def describe(field: "dataclasses.Field[object]") -> str:
    """Return one line about a parameter: its default and what it means."""
    default = field.default
    if field.metadata.get("is_size") and isinstance(default, int):
        default = format_size(default)
    choices = field.metadata.get("choices")
    return f"{field.metadata.get('meaning', '')} ({'|'.join(choices) + ', ' if choices else ''}default: {default})"


def _checked(value: Value, kind: type, about: Mapping[str, Any], what: str) -> object:
    if kind is bool:
        return _boolean(value, what)
    if kind is PerVm:
        return _per_vm(value, about, what)
    if kind is str:
        choices = about.get("choices", ())
        if not isinstance(value, str) or (choices and value not in choices):
            close = nearest(str(value), choices)
            raise UsageError(f"{what}: {value!r} is not one of {', '.join(choices)}{close}")
        return value
    return _number(value, kind, about, what)


def _boolean(value: Value, what: str) -> bool:
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise UsageError(f"{what}: {value!r} is not true or false")


def _number(value: Value, kind: type, about: Mapping[str, Any], what: str) -> float | int:
    number = _parse(value, kind, bool(about.get("is_size")), what)
    least, most = about.get("least"), about.get("most")
    if (least is not None and number < least) or (most is not None and number > most):
        if most is None:
            raise UsageError(f"{what}: {value} is less than {least:g}")
        raise UsageError(f"{what}: {value} is not from {least:g} to {most:g}")
    return number


def _parse(value: Value, kind: type, is_size: bool, what: str) -> float | int:
    if isinstance(value, bool):
        raise UsageError(f"{what}: {value!r} is not a number")
    try:
        if isinstance(value, str) and is_size:
            return parse_size(value)
        number = float(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{what}: {value!r} is not a number") from None
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    if not math.isfinite(number):
        raise UsageError(f"{what}: {value!r} is not a finite number")
    if kind is not int:
        return number
    if number != int(number):
        raise UsageError(f"{what}: {value!r} is not a whole number")
    return int(number)


def _per_vm(value: Value, about: Mapping[str, Any], what: str) -> PerVm:
    if not isinstance(value, str):
        return PerVm(_number(value, float, about, what))
    default: float | None = None
    named: dict[str, float] = {}
    for part in value.split(","):
        name, equals, text = part.strip().rpartition("=")
        number = _number(text, float, about, f"{what} of {name}" if equals else what)
        if (equals and name in named) or (not equals and default is not None):
            raise UsageError(f"{what}: {name or 'the default'} comes twice")
        if equals:
            named[name] = number
        else:
            default = number
    if default is None:
        raise UsageError(f"{what}: {value!r} has no number for the other virtual machines (write 1000,web=2000)")
    return PerVm(default, named)


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Return ``PARAM=VALUE`` words by name. Raises :class:`UsageError` for a word without ``=`` or a name twice."""
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"--set: parameters are written PARAM=VALUE, not {word!r}")
        if name in settings:
            raise UsageError(f"--set: {name} comes twice")
        settings[name] = value
    return settings
