"""Our daemon, which writes down what a driver does: ``python -m scripts.check.driver.watching_device FILE OPTION...``.

It discards what a report or an inflate names, waits, and looks whether any of it is there again before it gives the
chain back: a driver that uses such a page loses data with a slower device. It also looks at rings that were not kicked,
offers a feature that no driver knows, and wants an answer to each request of its own. Where a driver accepts what was
not offered it goes on, for the case to say so.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from host.__main__ import main as serve
from host.ring.ring_service import RingService
from host.vhost_user import config_change, feature_requests
from protocol.process.command_line import run_command
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.virtio import has_feature
from scripts.check.broken.device_faults.all_faults import ALL_FAULTS
from scripts.check.broken.fault import replaced
from scripts.check.driver.observation import UNKNOWN_FEATURE, WRONG_REPLY_SUFFIX
from scripts.check.driver.watch import Watch


class _Asked:
    """Whether the last session negotiated REPLY_ACK; the one driver's session is the last."""

    answers = False


def _watch_offer(watch: Watch) -> None:
    def offering(original: Any) -> Any:
        def get_features(session: Any, message: Any) -> Any:
            features = yield from original(session, message)
            return features | 1 << UNKNOWN_FEATURE

        return get_features

    def accepting(original: Any) -> Any:
        def set_features(session: Any, message: Any) -> Any:
            offered = session.offered | 1 << UNKNOWN_FEATURE
            watch.write("offered", features=offered, accepted=message.payload)
            yield from original(session, replace(message, payload=message.payload & session.offered))

        return set_features

    replaced(feature_requests, "get_features", offering)
    replaced(feature_requests, "set_features", accepting)


def _want_answers() -> None:
    def noting(original: Any) -> Any:
        def set_protocol_features(session: Any, message: Any) -> Any:
            _Asked.answers = has_feature(message.payload, ProtocolFeature.REPLY_ACK)
            yield from original(session, message)

        return set_protocol_features

    def asking(original: Any) -> Any:
        return lambda request, *payload: original(request, *payload, need_reply=_Asked.answers)

    replaced(feature_requests, "set_protocol_features", noting)
    replaced(config_change, "build_message", asking)


def _reply_wrongly(watch: Watch, wish: Path) -> None:
    # Once the file is there, the reply to the next GET_CONFIG names another request. The module is imported here: its
    # table of handlers is made of the functions that are there then.
    from host.vhost_user import backend

    def make(original: Any) -> Any:
        def build_own_reply(request: Any, payload: Any) -> bytes:
            data: bytes = original(request, payload)
            if request is FrontendRequest.GET_CONFIG and wish.exists():
                wish.unlink()
                watch.write("wrong_reply", request=request.name)
                return int(FrontendRequest.GET_QUEUE_NUM).to_bytes(4, "little") + data[4:]
            return data

        return build_own_reply

    replaced(backend, "build_own_reply", make)


def _watch(watch: Watch, wish: Path) -> None:
    replaced(RingService, "_serve_chain", watch.serve_chain)
    replaced(RingService, "_give_back_held", watch.give_back_held)
    replaced(RingService, "_discard", watch.discard)
    replaced(RingService, "start", watch.start)
    _watch_offer(watch)
    _want_answers()
    _reply_wrongly(watch, wish)


def main(argv: Sequence[str] | None = None) -> int:
    """Be the device; return the daemon's exit status. The first argument is the file, the second a fault or ``-``."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        with open(words[0], "a", encoding="utf-8") as stream:
            watch = Watch(stream)
            if words[1] != "-":
                ALL_FAULTS[words[1]].break_it()
            _watch(watch, Path(words[0] + WRONG_REPLY_SUFFIX))
            threading.Thread(target=watch.look, daemon=True).start()
            return serve(words[2:])

    return run_command("balloon-check", run)


if __name__ == "__main__":
    sys.exit(main())
