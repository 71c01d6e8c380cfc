"""The control: two processes that wake each other, with no daemon in between.

``python -m scripts.check.hostile.control FILE`` writes to FILE how long each round took from the moment at which it was
due: what the machine itself delays, where a report of the good machine takes long at the same time. It ends when its
standard input does.
"""

import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.check.hostile.good_machine import PERIOD
from scripts.check.hostile.samples import Sample, SampleWriter


def main(argv: Sequence[str] | None = None) -> int:
    """Measure until standard input ends; return the exit status."""
    (samples,) = (sys.argv[1:] if argv is None else argv)[:1]
    stop = sys.stdin.fileno()
    asked, answered = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(asked[1])
        while os.read(asked[0], 1):
            os.write(answered[1], b"\0")
        os._exit(0)
    writer = SampleWriter(Path(samples))
    due = time.monotonic()
    while not select.select([stop], [], [], max(0.0, due - time.monotonic()))[0]:
        os.write(asked[1], b"\0")
        os.read(answered[0], 1)
        now = time.monotonic()
        writer.add(Sample(due, now - due))
        due = now + PERIOD
    writer.close()
    os.close(asked[1])
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
