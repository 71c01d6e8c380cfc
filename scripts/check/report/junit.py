"""JUnit's XML, as continuous integration reads it."""

from collections.abc import Callable
from xml.etree import ElementTree

from scripts.check.report.reporter import Summary
from scripts.check.verdict import Result, Verdict


class JunitReport:
    """Writes the whole document with ``write`` at the end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def begin(self, target: str, cases: int) -> None:
        """Nothing is written yet."""

    def result(self, result: Result) -> None:
        """Nothing is written yet."""

    def end(self, summary: Summary) -> None:
        """Write the document: one suite, a test case for each case, findings as its output."""
        suite = ElementTree.Element(
            "testsuite",
            name=f"balloon-check {_printable(summary.target)}",
            tests=str(len(summary.results)),
            failures=str(summary.count(Verdict.FAIL)),
            errors="0",
            skipped=str(summary.count(Verdict.NOT_EXERCISED)),
            time=f"{summary.seconds:.3f}",
        )
        for one in summary.results:
            self._case(suite, one)
        root = ElementTree.Element("testsuites")
        root.append(suite)
        ElementTree.indent(root)
        self._write('<?xml version="1.0" encoding="utf-8"?>')
        self._write(ElementTree.tostring(root, encoding="unicode"))

    @staticmethod
    def _case(suite: ElementTree.Element, result: Result) -> None:
        name, _, ring = result.case.partition("/")
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"balloon-check.{ring or 'any'}", name=name, time=f"{result.seconds:.3f}"
        )
        reason = _printable(result.reason)
        if result.verdict is Verdict.FAIL:
            failure = ElementTree.SubElement(case, "failure", message=reason, type=", ".join(result.broken))
            failure.text = reason
        elif result.verdict is Verdict.NOT_EXERCISED:
            ElementTree.SubElement(case, "skipped", message=reason)
        elif result.verdict is Verdict.FINDING:
            ElementTree.SubElement(case, "system-out").text = f"FINDING [{', '.join(result.broken)}]: {reason}"


def _printable(text: str) -> str:
    # XML has no way to write most control characters.
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)
