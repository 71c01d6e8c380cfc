"""What a front-end has told its back-end, as far as a proxy needs it: the memory, and where the rings lie."""

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from protocol.errors import PeerError, VhostUserError
from protocol.memory import FileRange, MemoryRegion, RegionTable
from protocol.ring_formats import RingLayout
from protocol.vhost_user import FrontendRequest, form_of
from protocol.vhost_user_codec import build_message, parse_payload
from protocol.vhost_user_payloads import MemoryTable, VringAddress, VringState
from protocol.virtio import FeatureBit, has_feature
from scripts.check.faults.passing.message_pieces import Piece

File = TypeVar("File")


class RingPlace(NamedTuple):
    """A ring: its layout, where its three parts lie in memory, and where it begins (GET_VRING_BASE)."""

    layout: RingLayout
    parts: tuple[FileRange, FileRange, FileRange]
    base: int


@dataclass(slots=True)
class _Ring:
    size: int = 0
    base: int = 0
    address: VringAddress | None = None


class SessionFacts(Generic[File]):
    """Learns from the front-end's requests, each given to :meth:`learn`. Those that are wrong teach nothing."""

    def __init__(self, kind: type[File]) -> None:
        self._kind = kind
        self._features = 0
        self._rings: dict[int, _Ring] = {}
        self._regions: list[MemoryRegion] = []
        self._table_sent = False
        self.files: list[File] = []
        """The files of the memory regions. A :class:`FileRange` counts in them."""

    def learn(self, piece: Piece) -> None:
        """Take a request of the front-end."""
        try:
            request = FrontendRequest(piece.request)
            form = form_of(request).payload
            payload = None if form is None else parse_payload(form, piece.payload)
        except (ValueError, VhostUserError):
            return
        files = [file for file in piece.files if isinstance(file, self._kind)]
        match request, payload:
            case FrontendRequest.SET_FEATURES, int(features):
                self._features = features
            case FrontendRequest.SET_VRING_NUM, VringState(index, size):
                self._ring(index).size = size
            case FrontendRequest.SET_VRING_BASE, VringState(index, base):
                self._ring(index).base = base
            case FrontendRequest.SET_VRING_ADDR, VringAddress(index=index) as address:
                self._ring(index).address = address
            case FrontendRequest.SET_MEM_TABLE, MemoryTable(regions) if len(files) == len(regions):
                self._regions, self.files, self._table_sent = list(regions), files, True
            case FrontendRequest.ADD_MEM_REG, MemoryRegion() as region if files:
                self._regions.append(region)
                self.files.append(files[0])
            case FrontendRequest.REM_MEM_REG, MemoryRegion() as region:
                self._remove(region)

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    def _remove(self, region: MemoryRegion) -> None:
        for number, mine in enumerate(self._regions):
            if mine.is_same_place(region):
                del self._regions[number], self.files[number]
                return

    def ring(self, queue: int) -> RingPlace | None:
        """Return where the ring of ``queue`` lies, None as long as that was not said."""
        ring = self._rings.get(queue)
        if ring is None or ring.address is None:
            return None
        at = ring.address
        try:
            layout = RingLayout(ring.size, packed=has_feature(self._features, FeatureBit.RING_PACKED))
            table = RegionTable(self._regions)
        except PeerError:
            return None
        places = [
            table.translate_user(address, length)
            for address, length in zip((at.descriptor, at.available, at.used), layout.lengths, strict=True)
        ]
        parts = [place for place in places if place is not None]
        return RingPlace(layout, (parts[0], parts[1], parts[2]), ring.base) if len(parts) == 3 else None

    def memory_again(self) -> list[tuple[bytes, tuple[File, ...]]]:
        """Return messages, each with its files, that give the back-end the memory that it has once more."""
        if not self._regions:
            return []
        if self._table_sent:
            return [
                (build_message(FrontendRequest.SET_MEM_TABLE, MemoryTable(tuple(self._regions))), tuple(self.files))
            ]
        region = self._regions[-1]
        return [
            (build_message(FrontendRequest.REM_MEM_REG, region), ()),
            (build_message(FrontendRequest.ADD_MEM_REG, region), (self.files[-1],)),
        ]
