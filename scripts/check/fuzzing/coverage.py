"""Fuzzing that coverage guides: a process of its own for each target, in which atheris has instrumented the code.

Everything that a target runs is imported under atheris's eyes, so this process imports nothing of it before.
"""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import BalloonError
from scripts.check.fuzzing.corpus import CORPUS
from scripts.child_processes import module_environment, python_module


def run_guided(name: str, runs: int | None, seconds: float | None, seed: int, corpus: Path | None, save: Path) -> None:
    """Fuzz target ``name``. Inputs that reach new code are added to ``corpus``, if it is given.

    Raises:
        BalloonError: atheris is not installed, or a fault was found.
    """
    if importlib.util.find_spec("atheris") is None:
        raise BalloonError("--coverage needs the Python package atheris, which is not installed")
    with contextlib.ExitStack() as stack:
        if corpus is None:
            corpus = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="balloon-fuzz-")))
        corpus.mkdir(exist_ok=True)
        options = [
            f"-seed={seed & 0xFFFF_FFFF}",
            f"-artifact_prefix={save / f'fuzz-{name}-'}",
            "-timeout=20",
            "-max_len=8192",
            "-print_final_stats=1",
            *([] if runs is None else [f"-runs={runs}"]),
            *([] if seconds is None else [f"-max_total_time={max(1, round(seconds))}"]),
        ]
        command = python_module(__name__, name, *options, str(corpus), str(CORPUS / name))
        status = subprocess.run(command, env=module_environment(), check=False).returncode
    if status:
        raise BalloonError(f"{name}: a fault was found (status {status}), see the file named above")


def main(argv: Sequence[str]) -> None:
    """Fuzz the target ``argv[1]`` with libFuzzer's options after it. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["protocol", "host", "scripts.check.fuzzing"]):
        from scripts.check.fuzzing.targets import TARGETS
    atheris.Setup([argv[0], *argv[2:]], TARGETS[argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
