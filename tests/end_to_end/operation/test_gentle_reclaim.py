"""A reclaim with limits, asked for and followed by QEMU's own client."""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.daemon.test_control import ControlledDaemon, heard
from tests.harness.processes import ProgramProcess

MIB = 1 << 20


@pytest.mark.asyncio
async def test_floor_and_pace(tmp_path: Path) -> None:
    """The guest is left with the floor, and what was reached is told on the way."""
    with ControlledDaemon(tmp_path) as daemon:
        options = ("--memory", "128M", "--reporter", "off", "--workload", "memhog:size=64M,hold=0", "--hold")
        with ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *options) as guest:
            guest.events.wait("finished")
            async with daemon.client() as client:
                limits = {"floor": 64 * MIB, "pace": 256 * MIB, "stop-on-refault": True}
                result: Any = await client.execute("reclaim", limits)
                assert (result["complete"], result["stopped-by"]) == (True, None)
                assert 56 * MIB < result["offered-bytes"] <= 64 * MIB
                progress = await heard(client, "VM_RECLAIM_PROGRESS")
                assert 0 < progress["offered-bytes"] <= result["offered-bytes"]
                done = await heard(client, "VM_RECLAIMED")
                assert done["discarded-bytes"] == result["discarded-bytes"]
