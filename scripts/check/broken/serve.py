"""Our daemon with a fault: ``python -m scripts.check.broken.serve FAULT OPTION...`` takes the daemon's options."""

import sys
from collections.abc import Sequence

from host.__main__ import main as serve
from protocol.errors import UsageError
from protocol.process.command_line import run_command
from scripts.check.broken.device_faults.all_faults import ALL_FAULTS
from scripts.check.names import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Break the code of this process and be the daemon; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if not words or words[0] not in ALL_FAULTS:
            raise UsageError(f"the first argument is the name of a fault{nearest(words[:1], ALL_FAULTS)}")
        ALL_FAULTS[words[0]].break_it()
        return serve(words[1:])

    return run_command("balloon-check", run)


if __name__ == "__main__":
    sys.exit(main())
