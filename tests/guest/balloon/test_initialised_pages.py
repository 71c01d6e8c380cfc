"""What a driver knows of pages that the device has initialised (drafts)."""

import pytest

from guest.balloon.initialised_pages import DRAFT_FEATURES, InitialisedPages, initialised_pfns
from guest.balloon.virtio_balloon import WANTED, accept_features
from guest.command_line import make_parser, vmm_options
from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature

REPORTED, ON_INFLATE = 1 << 6, 1 << 7
POISON = feature_mask(BalloonFeature.PAGE_POISON)
REPORTING = feature_mask(BalloonFeature.PAGE_REPORTING)


@pytest.mark.parametrize(
    ("bitmap", "found"),
    [(b"\xff\x03", list(range(20, 30))), (b"\x01", [20]), (b"\x00\x02", [29]), (b"", []), (b"\x80\xff", [27, 28, 29])],
)
def test_bits_name_pages_in_the_order_of_the_message(bitmap: bytes, found: list[int]) -> None:
    assert initialised_pfns(range(20, 30), bitmap) == found


def pages(memory: bytearray) -> InitialisedPages:
    return InitialisedPages(lambda address, length: memoryview(memory)[address : address + length])


def test_page_is_known_until_it_is_used() -> None:
    known = pages(bytearray(8 * PAGE_SIZE))
    known.add(1, 4)
    known.forget(2, 1)
    assert [pfn in known for pfn in range(6)] == [False, True, False, True, True, False]
    assert (known.take(0, 4), known.uncleared_pages) == (0, 2)
    assert (known.take(0, 8), known.uncleared_pages) == (0, 3)
    assert (known.take(0, 8), known.uncleared_pages) == (0, 3)


def test_device_that_said_something_wrong_is_found() -> None:
    memory = bytearray(8 * PAGE_SIZE)
    memory[3 * PAGE_SIZE + 77] = 1
    known = pages(memory)
    known.add(2, 3)
    assert known.take(0, 8) == 1


def test_content_is_the_pattern_only_where_the_device_knows_it() -> None:
    known = pages(bytearray(b"\xaa" * PAGE_SIZE + bytes(PAGE_SIZE)))
    known.attach(REPORTED, 0xAAAA_AAAA)
    assert (known.holds(0), known.holds(0xAA)) == (True, False)
    known.add(0, 2)
    known.attach(REPORTED | POISON, 0xAA)  # what the last device said does not hold for this one
    assert 1 not in known
    assert (known.holds(0), known.holds(0xAA)) == (False, True)
    known.add(0, 1)
    assert known.take(0, 2) == 0


@pytest.mark.parametrize(
    ("options", "draft"),
    [
        ((), 0),
        (("--draft", "init-reported"), REPORTED),
        (("--draft", "init-on-inflate", "--draft", "init-reported"), REPORTED | ON_INFLATE),
    ],
)
def test_drafts_are_accepted_where_the_option_says_so(options: tuple[str, ...], draft: int) -> None:
    chosen = vmm_options(make_parser().parse_args(["--socket-path", "s", *options]))
    assert chosen.draft == draft
    offered = REPORTING | DRAFT_FEATURES
    assert accept_features(offered, wanted=WANTED | chosen.draft) == REPORTING | draft


def test_without_reports_there_is_nothing_to_say_about_them() -> None:
    wanted = WANTED | DRAFT_FEATURES
    assert accept_features(DRAFT_FEATURES, wanted=wanted) == ON_INFLATE
    # A guest with a pattern does not report to a device that does not know it.
    assert accept_features(REPORTING | DRAFT_FEATURES, wanted=wanted, page_poison=0) == ON_INFLATE
