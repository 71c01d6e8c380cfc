"""All edge cases by their numbers, and all entries of other suites and public reports by their names."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from scripts.check.edges.balloons import BALLOON, PROGRAM
from scripts.check.edges.edge import Edge, Peer
from scripts.check.edges.public_reports import IMPLEMENTATIONS, PUBLIC
from scripts.check.edges.rings import CONTENTS, SET_UP
from scripts.check.edges.sessions import FRAMING, MEMORY, NEGOTIATION
from scripts.check.edges.suites import SOURCES, VIRTUAL_MACHINES
from scripts.check.edges.villain import VILLAIN

_EDGES: Final = (*FRAMING, *NEGOTIATION, *MEMORY, *SET_UP, *CONTENTS, *BALLOON, *PROGRAM)

EDGES: Final[Mapping[int, Edge]] = MappingProxyType(
    {edge.number: edge for edge in sorted(_EDGES, key=lambda edge: edge.number)}
)
"""All edge cases, in the order of their numbers."""

PEERS: Final[tuple[Peer, ...]] = (*VIRTUAL_MACHINES, *SOURCES, *VILLAIN, *PUBLIC, *IMPLEMENTATIONS)
"""All entries of other suites, and all public reports."""
