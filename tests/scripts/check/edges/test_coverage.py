"""What no case covers is found, and so is what cases name in vain."""

from scripts.check.clauses.clause import BACK_END, DEVICE, Bound, Clause, Level
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.edges.coverage import Coverage, coverage
from scripts.check.edges.edge import Edge, Peer
from scripts.check.suite import Suite

EDGES = {
    1: Edge(number=1, statement="Something comes in pieces."),
    2: Edge(number=2, statement="Something comes twice."),
    3: Edge(number=3, statement="A program is killed.", not_applicable="It is not seen."),
}
PEERS = (
    Peer(names=("one/a", "two/b"), statement="A page is inflated."),
    Peer(names=("one/c",), statement="A page is deflated."),
    Peer(names=("one/d",), statement="A machine is saved.", not_applicable="It takes a monitor."),
)


def clause(id_: str, bound: frozenset[Bound]) -> Clause:
    return Clause(id=id_, bound=bound, level=Level.MUST, statement="It does.", section="here")


DEVICE_CLAUSES = {one.id: one for one in (clause("G-1", DEVICE), clause("G-2", DEVICE), clause("V-1", BACK_END))}


def suite(*, clauses: tuple[str, ...] = (), edges: tuple[int, ...] = (), peers: tuple[str, ...] = ()) -> Suite[None]:
    made = Suite[None]("made")

    @made.case("only", clauses=clauses, edges=edges, peers=peers)
    def only(target: None) -> None:
        """It is right."""

    return made


def covered(one: Suite[None], *, unseen: dict[str, str] | None = None) -> Coverage:
    return coverage([one], EDGES, PEERS, DEVICE_CLAUSES, unseen or {}, [Bound.DEVICE])


def test_what_no_case_names_is_left() -> None:
    left = covered(suite(edges=(1,), peers=("two/b",), clauses=("G-1",)))
    assert [edge.number for edge in left.edges] == [2]
    assert [peer.names for peer in left.peers] == [("one/c",)]
    assert [one.id for one in left.clauses] == ["G-2"]
    assert left.idle == ()
    assert left.unknown == ()


def test_clause_with_a_reason_is_not_left() -> None:
    assert [one.id for one in covered(suite(), unseen={"G-2": "It is not seen."}).clauses] == ["G-1"]


def test_reason_for_what_a_case_covers_is_idle() -> None:
    left = covered(suite(edges=(3,), peers=("one/d",), clauses=("G-1",)), unseen={"G-1": "It is not seen."})
    assert left.idle == (EDGES[3], PEERS[2], DEVICE_CLAUSES["G-1"])


def test_names_on_no_list_are_found() -> None:
    left = covered(suite(edges=(9,), peers=("one/x",), clauses=("G-9",)))
    assert left.unknown == (("only", "edge case 9"), ("only", "one/x"), ("only", "G-9"))


def test_reasons_are_for_clauses_that_there_are() -> None:
    assert UNSEEN.keys() <= CLAUSES.keys()
