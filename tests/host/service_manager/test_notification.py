"""The words of sd_notify(3) and sd_listen_fds(3)."""

import pytest

from host.service_manager.notification import (
    READY,
    build_notification,
    handed_over,
    handing_over,
    is_fd_name,
    main_process,
    parse_notification,
    reloading,
    remove,
    status,
    store,
    without_handing_over,
)
from protocol.errors import BalloonError


def test_messages_have_the_manual_s_words() -> None:
    assert build_notification({**READY, **main_process(12), **status("a\nb")}) == b"READY=1\nMAINPID=12\nSTATUS=a b"
    assert build_notification(store("vm1")) == b"FDSTORE=1\nFDNAME=vm1\nFDPOLL=0"
    assert build_notification(remove("vm1")) == b"FDSTOREREMOVE=1\nFDNAME=vm1"
    assert build_notification(reloading(5)) == b"RELOADING=1\nMONOTONIC_USEC=5"


@pytest.mark.parametrize("fields", [READY, store("vm1.connection"), {"STATUS": "a=b"}, {}])
def test_message_is_read_back(fields: dict[str, str]) -> None:
    assert parse_notification(build_notification(fields) + b"\n") == dict(fields)


@pytest.mark.parametrize("data", [b"READY", b"=1", b"ready=1", b"A=" + b"x" * 4096])
def test_message_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(BalloonError, match="a notification "):
        parse_notification(data)


def test_descriptors_are_for_one_process() -> None:
    names = ["vm1", "vm1", "unknown"]
    assert handed_over(handing_over(names, 7), 7) == names
    assert handed_over(handing_over(names, 7), 8) == []
    assert handed_over({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, 7) == ["unknown", "unknown"]
    assert handing_over([], 7) == {}
    assert without_handing_over({**handing_over(names, 7), "HOME": "/"}) == {"HOME": "/"}


@pytest.mark.parametrize(("count", "names"), [("2", "a"), ("1", "a:b"), ("-1", ""), ("x", "a")])
def test_variables_that_contradict_each_other_are_refused(count: str, names: str) -> None:
    with pytest.raises(BalloonError, match="LISTEN_FDS"):
        handed_over({"LISTEN_FDS": count, "LISTEN_FDNAMES": names, "LISTEN_PID": "7"}, 7)


def test_names_of_descriptors() -> None:
    assert all(map(is_fd_name, ("vm1.file 3", "x" * 255)))
    assert not any(map(is_fd_name, ("", "a:b", "a\n", "ä", "x" * 256)))
