"""The file of inflight tracking: its description, its checks when it comes back, and a file that is cut short."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.inflight.inflight import describe_file, region_bytes
from host.inflight.inflight_file import InflightFile, make_inflight_file
from protocol.errors import VhostUserError, VirtqueueError
from protocol.vhost_user_payloads import InflightDescription

QUEUES, SIZE = 3, 128
TOLD = describe_file(QUEUES, SIZE, packed=False)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("inflight", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, TOLD.mmap_size)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("packed", "size", "expected"), [(False, 128, 2112), (False, 1, 64), (True, 128, 4160), (True, 1, 64)]
)
def test_regions_are_64_byte_aligned(packed: bool, size: int, expected: int) -> None:
    """16 or 32 bytes of header and as many for each descriptor."""
    assert region_bytes(size, packed=packed) == expected


@pytest.mark.parametrize(("queues", "size"), [(0, 128), (6, 128), (65535, 128), (1, 0), (1, 32769), (1, 65535)])
def test_size_that_no_balloon_has_is_refused(queues: int, size: int) -> None:
    with pytest.raises(VhostUserError):
        describe_file(queues, size, packed=False)


def test_file_of_ours_cannot_change_its_size() -> None:
    fd = make_inflight_file(TOLD.mmap_size)
    assert os.fstat(fd).st_size == TOLD.mmap_size
    for size in (0, TOLD.mmap_size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_queues_have_their_own_bytes(fd: int) -> None:
    file = InflightFile(fd, TOLD, packed=False)
    for index in range(QUEUES):
        file.region(index, packed=False).write(8, bytes([index + 1]))
    for index in range(QUEUES):
        assert os.pread(fd, 1, index * region_bytes(SIZE, packed=False) + 8) == bytes([index + 1])
        assert file.region(index, packed=False).read(8, 1) == bytes([index + 1])
    assert file.entries == SIZE


def test_offset_is_part_of_every_place(fd: int) -> None:
    told = InflightDescription(
        mmap_size=region_bytes(SIZE, packed=False), mmap_offset=64, num_queues=1, queue_size=SIZE
    )
    InflightFile(fd, told, packed=False).region(0, packed=False).write(2, b"xy")
    assert os.pread(fd, 2, 66) == b"xy"


def test_queue_that_the_file_has_no_room_for(fd: int) -> None:
    file = InflightFile(fd, TOLD, packed=False)
    for index, packed in ((QUEUES, False), (QUEUES - 1, True)):
        with pytest.raises(VhostUserError, match="no room for queue"):
            file.region(index, packed=packed)


@pytest.mark.parametrize(
    "told",
    [
        InflightDescription(mmap_size=TOLD.mmap_size - 1, mmap_offset=0, num_queues=QUEUES, queue_size=SIZE),
        InflightDescription(mmap_size=TOLD.mmap_size, mmap_offset=1, num_queues=QUEUES, queue_size=SIZE),
        InflightDescription(mmap_size=(1 << 64) - 1, mmap_offset=(1 << 64) - 1, num_queues=QUEUES, queue_size=SIZE),
        InflightDescription(mmap_size=TOLD.mmap_size, mmap_offset=0, num_queues=6, queue_size=1),
        InflightDescription(mmap_size=TOLD.mmap_size, mmap_offset=0, num_queues=1, queue_size=0),
    ],
)
def test_description_that_the_file_does_not_bear_out(fd: int, told: InflightDescription) -> None:
    with pytest.raises(VhostUserError):
        InflightFile(fd, told, packed=False)


def test_files_that_are_unfit(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = tmp_path / "file"
    path.write_bytes(bytes(TOLD.mmap_size))
    for fd in (reading, writing, os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)):
        with pytest.raises(VhostUserError):
            InflightFile(fd, TOLD, packed=False)
        os.close(fd)


def test_region_that_is_being_opened_is_in_memory_until_it_is_flushed(fd: int) -> None:
    """The event loop opens a queue, and the file's lock may be in the front-end's hand."""
    region = InflightFile(fd, TOLD, packed=False).region(1, packed=False)
    region.write(0, b"abcd")
    region.load()
    region.write(1, b"x")
    region.write(2, b"yz")
    assert region.read(0, 4) == b"axyz"
    other = InflightFile(fd, TOLD, packed=False).region(1, packed=False)
    assert other.read(0, 4) == b"abcd"
    region.flush()
    assert other.read(0, 4) == b"axyz"
    region.write(0, b"!")
    region.flush()
    assert other.read(0, 4) == region.read(0, 4) == b"!xyz"


def test_file_that_is_cut_short_or_sealed_later_breaks_its_own_queues_only(fd: int) -> None:
    region = InflightFile(fd, TOLD, packed=False).region(2, packed=False)
    os.ftruncate(fd, 100)
    with pytest.raises(VirtqueueError, match="cut short"):
        region.read(0, 16)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(VirtqueueError, match="cannot be written"):
        region.write(0, b"x")
