"""What one guest adds to a scrape: the values of all metrics, and no more.

Workers take it from their guests' entries of ``query-vms`` and pass it on, a fifth as long as these.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from host.metrics.names import GUEST, NOT_SERVED, NOTES, Entry

Latency: TypeAlias = tuple[Sequence[int], float]
"""How long chains took: a count for each bucket, and the sum in seconds."""


class Sample(NamedTuple):
    """The values of one guest, in the order of :data:`host.metrics.names.GUEST`; None is a metric that it has not.

    Without ``is_served`` its worker does not answer, and the values are old. ``refused`` is bytes by reason, ``health``
    the causes that doctor found, ``inhibited`` who inhibits discards.
    """

    vm: int
    is_served: bool
    pid: int
    name: str
    values: Sequence[float | None]
    refused: Mapping[str, int]
    health: Sequence[str]
    inhibited: str | None
    discard: Latency
    acknowledge: Latency

    @property
    def causes(self) -> Sequence[str]:
        """What doctor finds at present."""
        return self.health if self.is_served else NOT_SERVED

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has to be mended."""
        return all(cause in NOTES for cause in self.causes)


def sample_of(entry: Entry) -> Sample:
    """Return the sample of an entry of ``query-vms``. As JSON it is a list of its parts."""
    inhibited = entry["inhibited"]
    discard, acknowledge = entry["discard"], entry["acknowledge"]
    return Sample(
        entry["vm"],
        True,
        entry["pid"],
        entry["name"],
        [metric.value(entry) for metric in GUEST],
        entry["refused-bytes"],
        entry["health"],
        None if inhibited is None else inhibited["by"],
        (discard["counts"], discard["seconds"]),
        (acknowledge["counts"], acknowledge["seconds"]),
    )


def read_sample(parts: Sequence[Any], buckets: int) -> Sample | None:
    """Return the sample that a list of its parts stands for, whose latencies have so many ``buckets``. None if it is
    not what :func:`sample_of` makes: a worker that a guest has made its own says what it likes."""
    match parts:
        case [
            int(),
            bool(),
            int(),
            str(),
            [*values],
            {**refused},
            [*health],
            str() | None,
            [[*discards], int() | float()] as discard,
            [[*acknowledgements], int() | float()] as acknowledge,
        ]:
            numbers = [*(value for value in values if value is not None), *refused.values()]
            numbers += [*discards, discard[1], *acknowledgements, acknowledge[1]]
            texts = [*refused, *health]
            lengths = len(values), len(discards), len(acknowledgements)
            if lengths != (len(GUEST), buckets, buckets):
                return None
            if all(map(_is_number, numbers)) and all(isinstance(text, str) for text in texts):
                return Sample(*parts)
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
