"""What the device asks of a driver while it watches."""

from pathlib import Path
from typing import Any

import pytest

from scripts.check.driver.scenario import STATISTICS, Scenario, ScenarioOptions


class Device:
    """The process of the device, which tells ``events`` once."""

    def __init__(self, *events: str) -> None:
        self._events = [{"event": event} for event in events]

    def new_events(self) -> list[dict[str, Any]]:
        """Return what was not told yet."""
        told, self._events = self._events, []
        return told

    def ended(self) -> bool:
        """Return that it runs."""
        return False


class Client:
    """A control socket that answers nothing."""

    def command(self, name: str, **_: object) -> object:
        """Return an empty answer."""
        return {"command": name}


@pytest.mark.parametrize(("events", "owed"), [(("features",), STATISTICS), (("features", "disconnected"), 0)])
def test_driver_that_went_away_owes_no_statistics(tmp_path: Path, events: tuple[str, ...], owed: int) -> None:
    (tmp_path / "observations").touch()
    scenario: Any = Scenario(tmp_path, tmp_path / "socket", ScenarioOptions(), print)
    scenario._device = Device(*events)
    scenario._ask_statistics(Client())
    assert scenario._seen.marks.get("statistics", 0) == owed
