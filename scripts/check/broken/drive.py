"""Our guest whose driver has a fault: ``python -m scripts.check.broken.drive FAULT OPTION...`` takes its options."""

import sys
from collections.abc import Sequence

from guest.__main__ import main as run_guest
from protocol.errors import UsageError
from protocol.process.command_line import run_command
from scripts.check.broken.driver_faults.all_driver_faults import ALL_DRIVER_FAULTS
from scripts.check.names import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Break the code of this process and be the guest; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if not words or words[0] not in ALL_DRIVER_FAULTS:
            raise UsageError(f"the first argument is the name of a fault{nearest(words[:1], ALL_DRIVER_FAULTS)}")
        fault = ALL_DRIVER_FAULTS[words[0]]
        fault.break_it()
        return run_guest([*fault.guest, *words[1:]])

    return run_command("balloon-check", run)


if __name__ == "__main__":
    sys.exit(main())
