"""What XML cannot hold does not come into the document."""

from xml.etree import ElementTree

from scripts.check.report.junit import JunitReport
from scripts.check.report.reporter import Summary


def test_target_that_xml_cannot_hold_is_named_all_the_same() -> None:
    lines: list[str] = []
    target = b"/run/\x01\xff.socket".decode(errors="surrogateescape")
    JunitReport(lines.append).end(Summary(target=target, results=(), clauses=(), seconds=0.0))
    (suite,) = ElementTree.fromstring("\n".join(lines[1:]))
    assert suite.get("name") == "balloon-check /run/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.socket"
