"""All edge cases by their numbers, and all entries of other suites and public reports by their names."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from scripts.check.edges.balloons import BALLOON, PROGRAM
from scripts.check.edges.edge import Edge
from scripts.check.edges.rings import CONTENTS, SET_UP
from scripts.check.edges.sessions import FRAMING, MEMORY, NEGOTIATION

_ALL: Final = (*FRAMING, *NEGOTIATION, *MEMORY, *SET_UP, *CONTENTS, *BALLOON, *PROGRAM)

EDGES: Final[Mapping[int, Edge]] = MappingProxyType(
    {edge.number: edge for edge in sorted(_ALL, key=lambda edge: edge.number)}
)
"""All edge cases, in the order of their numbers."""
