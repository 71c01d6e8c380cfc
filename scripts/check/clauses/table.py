"""All clauses by their ids."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from scripts.check.clauses.balloon import BALLOON
from scripts.check.clauses.clause import Clause
from scripts.check.clauses.devices import DEVICES
from scripts.check.clauses.findings import FINDINGS
from scripts.check.clauses.front_ends import FRONT_ENDS
from scripts.check.clauses.rings import RINGS
from scripts.check.clauses.vhost_user import VHOST_USER

CLAUSES: Final[Mapping[str, Clause]] = MappingProxyType(
    {clause.id: clause for clause in (*BALLOON, *DEVICES, *RINGS, *VHOST_USER, *FRONT_ENDS, *FINDINGS)}
)
"""All clauses, in the order of the specifications."""
