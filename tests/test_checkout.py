"""What holds for every file of the checkout: a size to be read in one sitting, nothing that belongs to one machine."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.harness.syntax import ROOT, name_of, nodes, python_files

SIDES = ("protocol", "guest", "host", "scripts", "tests")

# Two screens of a function, and a file that is read in one sitting: 400 lines. The 20 above keep a correction from
# forcing a split on the person who makes it.
LONGEST_FUNCTION = 50
LONGEST_FILE = 420

# A folder is one room: 15 files. The two above are for the same reason.
FULLEST_FOLDER = 17

# What belongs to one person's machine and not into a checkout.
PRIVATE = re.compile(
    r"""
      (?<![\w.$}])/(root|home|Users|work)/\w     # somebody's directory
    | --(extra-)?index-url | --find-link[s]      # where somebody's packages come from
    | file:///\w
    """,
    re.VERBOSE,
)
TEXT = {".py", ".md", ".toml", ".lock", ".sh", ".ini", ".yml", ".yaml", ""}


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, line, length) of every function; the length counts from ``def`` to the end, less the docstring."""
    for node in nodes(path):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            assert first.end_lineno is not None
            length -= first.end_lineno - first.lineno + 1
        yield node.name, node.lineno, length


def test_private_paths_are_found() -> None:
    assert PRIVATE.search("opens /" + "home/me/x") is not None
    assert PRIVATE.search("$HOME/home/x and /usr/share/home/y") is None


def test_packages_are_typed() -> None:
    packages = [ROOT / name for name in SIDES if name != "tests"]
    assert [name_of(package) for package in packages if not (package / "py.typed").is_file()] == []


def test_package_files_hold_a_docstring_only() -> None:
    """Nothing is re-exported: every name has one place."""
    breaches = []
    for path in python_files("guest", "host", "protocol", "scripts"):
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if len(tree.body) != 1 or ast.get_docstring(tree) is None:
                breaches.append(name_of(path))
    assert breaches == []


def test_files_and_functions_stay_small() -> None:
    breaches = []
    for path in python_files(*SIDES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            breaches.append(f"{name_of(path)}: {lines} lines")
        breaches += [
            f"{name_of(path)}:{line}: {function} has {length} lines"
            for function, line, length in functions(path)
            if length > LONGEST_FUNCTION
        ]
    assert breaches == []


def test_folders_stay_small() -> None:
    """Beside its modules a folder holds only what describes it: the package file, the README, the type marker."""
    counts = Counter(path.parent for path in python_files(*SIDES) if path.name not in ("__init__.py", "conftest.py"))
    assert [f"{name_of(folder)}: {n} files" for folder, n in counts.items() if n > FULLEST_FOLDER] == []


def test_checkout_holds_nothing_of_one_machine() -> None:
    paths = [path for package in SIDES for path in (ROOT / package).rglob("*")]
    paths += [*ROOT.glob("*.*"), *(ROOT / ".ci").glob("*")]
    breaches = []
    for path in paths:
        if not path.is_file() or path.suffix not in TEXT or path.name.startswith("."):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if PRIVATE.search(line) is not None:
                breaches.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert breaches == []
