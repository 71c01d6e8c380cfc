"""``--vm``: a socket in the words of one option, as QEMU writes its own: ``socket-path=PATH,name=web,packed=on``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from host.balloon.offered_features import FEATURE_NAMES
from host.configuration.vm_socket import Gathered, SocketDefaults, VmSocket
from host.configuration.vm_table import KEYS, read_vm
from protocol.configuration.toml_table import Table, nearest
from protocol.errors import UsageError


def parse_vm_option(text: str) -> dict[str, Any]:
    """Return the values of a ``--vm`` by key; a comma in a value is written twice.

    The name of a feature is short for one of ``features``: ``packed=on``, and so ``features=packed=on,in-order=on``
    means what it says.

    Raises:
        UsageError: a word without ``=``, or a key that comes twice.
    """
    values: dict[str, Any] = {}
    features: dict[str, str] = {}
    for key, value in _words(text):
        place = features if _means_feature(key) else values
        if key in place:
            raise UsageError(f"{key} comes twice")
        place[key] = _typed(key, value)
    if features:
        values["features"] = features
    return values


def _words(text: str) -> Iterator[tuple[str, str]]:
    for word in text.replace(",,", "\0").split(","):
        key, equals, value = word.replace("\0", ",").strip().partition("=")
        if not equals or not key:
            raise UsageError(f"write KEY=VALUE,..., not {word!r}")
        if key == "features":
            key, equals, value = value.partition("=")
            if not equals:
                raise UsageError(f"write features=NAME=on|off,..., not {word!r}")
            if key not in FEATURE_NAMES:
                raise UsageError(f"no feature {key!r}, known are {', '.join(FEATURE_NAMES)}")
        yield key, value


def _means_feature(key: str) -> bool:
    # A mistyped one too, to be told of the name that it is like.
    return key in FEATURE_NAMES or (key not in KEYS and not nearest(key, KEYS) and bool(nearest(key, FEATURE_NAMES)))


def _typed(key: str, value: str) -> Any:
    # TOML has whole numbers without quotes.
    return int(value) if key == "statistics-interval" and value.isascii() and value.isdecimal() else value


def read_vm_options(options: Sequence[Mapping[str, Any]], defaults: SocketDefaults) -> tuple[VmSocket, ...]:
    """Return the sockets of all ``--vm``. Raises :class:`Mistakes`, with places such as ``--vm[0].name``."""
    mistakes = Gathered()
    sockets = tuple(read_vm(Table(values, f"--vm[{n}]"), defaults, mistakes) for n, values in enumerate(options))
    mistakes.check()
    return sockets
