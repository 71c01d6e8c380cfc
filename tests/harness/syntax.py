"""The project's source text as syntax trees, for the tests that hold its laws."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def python_files(*packages: str) -> list[Path]:
    """Return the Python files of the given top-level packages, in a stable order."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


_KINDS = (ast.Import, ast.ImportFrom, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return the imports, calls and functions of a file, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(node for node in ast.walk(tree) if isinstance(node, _KINDS))


def name_of(path: Path) -> str:
    """Return the path as it is written in a message: relative to the checkout."""
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    """Return every absolute module that the file imports, wherever in the file; a relative import fails the test."""
    modules: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            assert node.module is not None
            modules.add(node.module)
    return modules
