"""``vhost-user-balloon``: the entry point of the daemon.

What it can do is asked by programs that start virtual machines, so that answer is quick: it loads nothing else.
"""

import gc
import json
import sys
from collections.abc import Sequence

from host.balloon.offered_features import FEATURE_NAMES
from protocol.process.command_line import DISTRIBUTION, run_command


def print_capabilities() -> int:
    """Print the JSON that the vhost-user conventions ask for; return the exit status."""
    print(json.dumps({"type": "balloon", "features": list(FEATURE_NAMES)}))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; return the exit status: 0 after SIGTERM, 1 for a failure, 2 for a usage error."""
    words = sys.argv[1:] if argv is None else list(argv)
    if "--print-capabilities" in words:
        return run_command(DISTRIBUTION, print_capabilities)
    gc.disable()  # until all is loaded: what is loaded stays, so that nothing would be found
    _load_asyncio()
    from host.command import run  # late: see above

    return run(words)


def _load_asyncio() -> None:
    # Without TLS, which it does without where Python has none: OpenSSL takes time and memory of every process.
    loaded = sys.modules.get("ssl")
    if loaded is None:
        sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        if loaded is None:
            del sys.modules["ssl"]


if __name__ == "__main__":
    sys.exit(main())
