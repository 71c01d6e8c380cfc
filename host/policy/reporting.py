"""``reporting``: free page reporting alone. The guests return what is free by themselves; nothing is asked of them."""

from dataclasses import dataclass

from host.policy.observation import Observation
from host.policy.parameters import interval
from host.policy.policy import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportingParameters:
    """How often it says so."""

    interval: float = interval(60.0)


class Reporting:
    """Never asks for anything."""

    name = "reporting"

    def __init__(self, parameters: ReportingParameters = ReportingParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval

    def decide(self, seen: Observation) -> Decision:
        """Return no action."""
        return Decision((), "free page reporting alone")
