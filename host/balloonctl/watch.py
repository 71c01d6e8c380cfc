"""``watch``: a line for each event of all daemons, until they end."""

import json
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from host.balloonctl.answers import EVENT, check_answer
from host.balloonctl.daemons import Daemon, Daemons
from host.balloonctl.table import event_line
from host.terminal_view.styled_line import printable
from protocol.errors import BalloonError
from protocol.process.command_line import escaped

_POLL: Final = 0.5
"""Seconds after which Ctrl-C is seen at the latest."""

LATEST: Final = 1 << 40
"""The latest second since 1970 that an event may have; it is far beyond this era."""

Item = tuple[Daemon, Mapping[str, Any] | str]
"""A daemon and its next event, or a line that says why there are no more."""


def watch_all(daemons: Daemons, *, as_json: bool) -> int:
    """Print the events of all daemons until the last has ended, and return the exit status."""
    several = len(daemons.daemons) > 1
    items: queue.Queue[Item] = queue.Queue()
    for daemon in daemons.daemons:
        threading.Thread(target=_follow, args=(daemon, items), daemon=True).start()
    paths = ", ".join(str(daemon.path) for daemon in daemons.daemons)
    print(f"balloonctl: watching {paths}", file=sys.stderr, flush=True)
    left = len(daemons.daemons)
    while left:
        try:
            daemon, item = items.get(timeout=_POLL)
        except queue.Empty:
            continue
        if isinstance(item, str):
            print(f"balloonctl: {escaped(item)}", file=sys.stderr)
            left -= 1
            continue
        text = json.dumps({"daemon": str(daemon.path), **item}) if as_json else _line(daemon, item, several=several)
        print(text, flush=True)
    return 1


def _follow(daemon: Daemon, items: "queue.Queue[Item]") -> None:
    try:
        while True:
            items.put((daemon, check_answer(daemon.client.next_event(), EVENT, str(daemon.path))))
    except BalloonError as error:
        items.put((daemon, str(error)))


def _line(daemon: Daemon, event: Mapping[str, Any], *, several: bool) -> str:
    data, seconds = event["data"], event["timestamp"]["seconds"]
    clock = time.strftime("%H:%M:%S", time.localtime(min(max(seconds, 0), LATEST)))
    label = str(data.get("vm", ""))
    line = event_line(clock, f"{daemon.name}:{label}" if several else f"vm {label}", event["event"], data)
    return printable(line)
