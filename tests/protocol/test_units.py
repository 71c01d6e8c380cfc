"""Sizes: what is read is what was meant, and nothing else is guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UsageError
from protocol.units import GIB, KIB, MIB, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("4k", 4 * KIB),
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("512MB", 512 * MIB),
        ("1g", GIB),
        ("1GiB", GIB),
        ("2T", 2 * TIB),
        (" 1G ", GIB),
    ],
)
def test_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5G", "1P", "1 G", "0x10", "1GG", "1iG", "1e9", "1_000", "one", "\uff11", "9" * 5000]
)
def test_text_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a size: .* for example"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1024.0 KiB"),
        (MIB, "1.0 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (TIB, "1.0 TiB"),
        (5000 * TIB, "5000.0 TiB"),
        (-MIB, "-1.0 MiB"),
    ],
)
def test_size_is_shown_in_its_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(number=st.integers(min_value=0, max_value=1 << 40), suffix=st.sampled_from("KMGT"))
def test_number_and_suffix_multiply(number: int, suffix: str) -> None:
    assert parse_size(f"{number}{suffix}") == number << {"K": 10, "M": 20, "G": 30, "T": 40}[suffix]
