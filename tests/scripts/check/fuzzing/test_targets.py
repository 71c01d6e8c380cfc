"""The fuzz targets: no input of the corpus and no other finds a fault, and a fault that is planted is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.balloon.balloon_statistics import parse_statistics
from host.memory.discard_plan import DeviceMemory
from host.qmp import json_stream
from host.virtqueue import split_virtqueue
from host.virtqueue.packed_virtqueue import PackedDeviceVirtqueue
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue
from host.virtqueue.virtqueue import Buffer
from protocol.balloon_config import BalloonConfig
from protocol.errors import UsageError
from protocol.vhost_user_codec import MessageReader
from scripts.check.fuzzing import small_targets
from scripts.check.fuzzing.byte_source import ByteSource, Violation
from scripts.check.fuzzing.corpus import CORPUS, read_inputs
from scripts.check.fuzzing.mutation import Mutator, find_crash, shrunk
from scripts.check.fuzzing.options import NAMES
from scripts.check.fuzzing.targets import TARGETS

FILE_MAX = 4352
"""Most bytes of one file of the corpus: the longest buffer of statistics fits."""


def test_targets_are_those_of_the_options() -> None:
    assert tuple(TARGETS) == NAMES


def test_corpus_is_small_and_complete() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(NAMES)
    files = [path for name in NAMES for path in (CORPUS / name).iterdir()]
    assert [str(path) for path in files if path.suffix != ".bin" or path.stat().st_size > FILE_MAX] == []
    assert len(files) < 120


@pytest.mark.parametrize("name", NAMES)
def test_corpus_finds_no_fault(name: str) -> None:
    inputs = read_inputs(CORPUS / name)
    assert len(inputs) >= 5
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_find_no_fault(name: str) -> None:
    @settings(max_examples=100)
    @given(st.binary(max_size=300))
    def try_bytes(data: bytes) -> None:
        TARGETS[name](data)

    try_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_mutated_corpus_finds_no_fault(name: str) -> None:
    inputs = iter(Mutator(3, read_inputs(CORPUS / name)))
    runs, crash = find_crash(TARGETS[name], inputs, lambda count: count < 150)
    assert (runs, crash) == (150, None)


def _lose_a_descriptor(patch: pytest.MonkeyPatch) -> None:
    take_fds = MessageReader.take_fds
    patch.setattr(MessageReader, "take_fds", lambda self: take_fds(self)[:8])


def _write_without_log(patch: pytest.MonkeyPatch) -> None:
    write_used = SplitDeviceVirtqueue._write_used

    def write(self: SplitDeviceVirtqueue, head: int, length: int) -> None:
        logged = self.on_write
        self.on_write = None
        write_used(self, head, length)
        self.on_write = logged

    patch.setattr(SplitDeviceVirtqueue, "_write_used", write)


def _take_any_id(patch: pytest.MonkeyPatch) -> None:
    pop = PackedDeviceVirtqueue.pop

    def pop_twice(self: PackedDeviceVirtqueue) -> object:
        chain = pop(self)
        if chain is not None:
            self._slots_of.clear()
        return chain

    patch.setattr(PackedDeviceVirtqueue, "pop", pop_twice)


def _take_any_order(patch: pytest.MonkeyPatch) -> None:
    def add(address: int, length: int, readable: list[Buffer], _writable: list[Buffer]) -> None:
        readable.append((address, length))

    patch.setattr(split_virtqueue, "add_readable", add)


def _forget_the_rings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeviceMemory, "is_protected", lambda _self, _place: False)


def _write_every_field(patch: pytest.MonkeyPatch) -> None:
    write = BalloonConfig.written_by_driver
    patch.setattr(
        BalloonConfig, "written_by_driver", lambda self, at, data, **_: write(self, at, data, writable=range(16))
    )


def _pass_infinity_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(json_stream, "_finite", float)


def _forget_a_tag(patch: pytest.MonkeyPatch) -> None:
    parse = parse_statistics
    patch.setattr(small_targets, "parse_statistics", lambda data: parse(data[:150]))


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("codec", _lose_a_descriptor),
        ("split-ring", _write_without_log),
        ("packed-ring", _take_any_id),
        ("indirect-table", _take_any_order),
        ("discard-plan", _forget_the_rings),
        ("chain", _forget_the_rings),
        ("config", _write_every_field),
        ("control", _pass_infinity_on),
        ("statistics", _forget_a_tag),
    ],
)
def test_planted_fault_is_found(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver finds each with a fixed seed, and makes its input no longer."""
    plant(monkeypatch)
    inputs = iter(Mutator(5, read_inputs(CORPUS / name)))
    _, crash = find_crash(TARGETS[name], inputs, lambda count: count < 5000)
    assert crash is not None
    small = shrunk(TARGETS[name], crash)
    assert len(small.data) <= len(crash.data)
    assert small.place == crash.place
    with pytest.raises(type(crash.error)):
        TARGETS[name](small.data)


def test_fault_that_needs_two_mutations_is_found_and_its_input_is_shrunk() -> None:
    def target(data: bytes) -> None:
        source = ByteSource(data)
        if source.number(2) == 4096 and source.number() > 0x80:
            raise Violation("planted")

    inputs = [bytes(40), b"some other bytes"]
    runs, crash = find_crash(target, iter(Mutator(1, inputs)), lambda count: count < 200_000)
    again, same = find_crash(target, iter(Mutator(1, inputs)), lambda count: count < 200_000)
    assert crash is not None
    assert same is not None
    assert (runs, crash.data) == (again, same.data)
    small = shrunk(target, crash).data
    assert len(small) == 3
    assert small[:2] == b"\0\x10"


def test_directory_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no file"):
        read_inputs(tmp_path)
    with pytest.raises(UsageError, match="is not a directory"):
        read_inputs(tmp_path / "absent")
