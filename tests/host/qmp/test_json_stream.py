"""Objects out of a stream: every cut of the bytes gives the same, and invalid JSON is one error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.qmp.json_stream import NESTING_MAX, TEXT_MAX, JsonError, JsonStream
from protocol.errors import FramingError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)


def read(*pieces: bytes) -> list[Any]:
    """Return what comes out of ``pieces``: objects, and errors by their kind; a FramingError ends it."""
    stream = JsonStream()
    found: list[Any] = []
    for piece in pieces:
        stream.feed(piece)
        while True:
            try:
                value = stream.next_object()
            except JsonError:
                found.append(JsonError)
                continue
            except FramingError:
                return [*found, FramingError]
            if value is None:
                break
            found.append(value)
    return found


@given(
    st.lists(OBJECTS, max_size=4),
    st.sampled_from(["", " ", "\n", "\r\n\t"]),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.integers(1, 7),
)
@pytest.mark.long
def test_objects_arrive_whole_however_they_come(
    objects: list[Any], between: str, indent: int | None, ascii_only: bool, step: int
) -> None:
    text = between.join(json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in objects)
    data = text.encode(errors="surrogatepass")
    if "\\u" in text or data == text.encode(errors="replace"):
        assert read(*(data[at : at + step] for at in range(0, len(data), step))) == objects


PIECES = st.sampled_from(
    [
        b'{"a": "}"}',
        b'{"a": "\\"{"}',
        b"{}",
        b"[1]",
        b"{",
        b"}",
        b'"',
        b"\\",
        b"\n",
        b"\xff",
        b"\0",
        b"x",
        b'{"a":[}',
        b"1 ",
    ]
)


@given(st.lists(PIECES, max_size=12), st.data())
def test_stream_cut_anywhere_gives_the_same(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parts = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = read(stream)
    assert read(*parts) == whole
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == whole


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_object_on_a_new_line_is_read_after_any_input(noise: bytes, more: bytes) -> None:
    """The protocol's way to reset the parser, a 0xFF byte: the objects after it are parsed."""
    assert read(noise, more, b'\xff\n{"in": "step"}')[-1] == {"in": "step"}


@pytest.mark.parametrize(
    "bad",
    [
        b'{"a": nothing}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": "\xc3"}',
        b'{\0"\0a\0}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": [}',
        b'{"a": "b\n',
        b"[{}]",
        b"}",
        b"quit",
        b'"text"',
        b"\xff",
        b"\0\0\0\0",
    ],
)
def test_invalid_json_is_one_error(bad: bytes) -> None:
    assert read(b'{"first": 1}' + bad + b'\n{"next": 2}') == [{"first": 1}, JsonError, {"next": 2}]


def test_integer_too_long_to_be_converted_is_one_clear_error() -> None:
    stream = JsonStream()
    stream.feed(b'{"a": 1' + b"0" * 5000 + b"}")
    with pytest.raises(JsonError, match=r"^not JSON: an integer of 5001 digits$"):
        stream.next_object()


def test_parser_resumes_at_the_next_brace_without_a_newline() -> None:
    assert read(b'}{"next": 2}') == [JsonError, {"next": 2}]
    assert read(b'{"a": bad}{"next": 2}') == [JsonError, {"next": 2}]


def test_longest_object_and_one_byte_more() -> None:
    longest = b'{"a": "' + b"x" * (TEXT_MAX - 9) + b'"}'
    assert len(longest) == TEXT_MAX
    assert read(longest, longest) == [{"a": "x" * (TEXT_MAX - 9)}] * 2
    assert read(b"{}" + longest.replace(b'"}', b'x"}')) == [{}, FramingError]
    assert read(*(b"{" + b" " * 1000 for _ in range(1)), *(b" " * 1000 for _ in range(66))) == [FramingError]


def test_deepest_object_and_one_bracket_more() -> None:
    for count, outcome in ((NESTING_MAX - 1, dict), (NESTING_MAX, FramingError)):
        (found,) = read(b'{"a": ' + b"[" * count + b"]" * count + b"}")
        assert found is outcome or isinstance(found, outcome)


def test_white_space_is_not_kept() -> None:
    assert read(*([b" \n" * 1000] * 100), b"{}") == [{}]
