"""The messages about the device's configuration space, and the news of its changes.

Source: vhost-user specification, "Virtio device config space"; virtio 1.2, 5.5.4.
"""

from dataclasses import replace

from host.vhost_user.actions import Effects
from host.vhost_user.session import Handler, Handling, Session
from protocol.errors import VhostUserError
from protocol.vhost_user import CONFIG_MAX, BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Message, build_message
from protocol.vhost_user_payloads import DeviceConfig
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature


class ConfigRequests:
    """Lets the front-end read and write the configuration space, and tells it when the device has changed it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def handlers(self) -> dict[FrontendRequest, Handler]:
        """Which method carries out which request."""
        return {
            FrontendRequest.GET_CONFIG: self._get_config,
            FrontendRequest.SET_CONFIG: self._set_config,
        }

    def _get_config(self, message: Message) -> Handling:
        yield from ()
        config = _config_of(message)
        return replace(config, data=self._session.balloon.read_config(config.offset, len(config.data)))

    def _set_config(self, message: Message) -> Effects:
        yield from ()
        config = _config_of(message)
        session = self._session
        poison_offered = has_feature(session.offered, BalloonFeature.PAGE_POISON)
        session.balloon.write_config(
            config.offset, config.data, poison_offered=poison_offered, driver_runs=session.has_driver
        )

    def change(self, **fields: int) -> bytes | None:
        """Set ``fields`` of the configuration space. Return the request to send on the back-end's channel, or None
        where no driver listens: it will read the configuration space when it starts."""
        session = self._session
        session.balloon.config = replace(session.balloon.config, **fields)
        if not session.hears_of_config or not session.has_driver:
            # Nothing may be sent while all rings stand still; a driver that is only stopped hears of it afterwards.
            session.config_news |= any(vring.address is not None for vring in session.vrings)
            return None
        return build_message(BackendRequest.CONFIG_CHANGE_MSG)


def _config_of(message: Message) -> DeviceConfig:
    assert isinstance(message.payload, DeviceConfig)
    if message.payload.offset + len(message.payload.data) > CONFIG_MAX:
        raise VhostUserError(
            f"{len(message.payload.data)} bytes of configuration space at {message.payload.offset} exceed {CONFIG_MAX}"
        )
    return message.payload
