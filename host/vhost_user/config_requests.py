"""The messages about the device's configuration space.

Source: vhost-user specification, "Virtio device config space"; virtio 1.2, 5.5.4.
"""

from dataclasses import replace

from host.vhost_user.actions import Effects
from host.vhost_user.session import Handling, Session
from protocol.errors import VhostUserError
from protocol.vhost_user import CONFIG_MAX
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import DeviceConfig
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature


def get_config(session: Session, message: Message) -> Handling:
    """GET_CONFIG: part of the configuration space."""
    yield from ()
    config = _config_of(message)
    return replace(config, data=session.balloon.read_config(config.offset, len(config.data)))


def set_config(session: Session, message: Message) -> Effects:
    """SET_CONFIG: the driver writes to the configuration space."""
    yield from ()
    config = _config_of(message)
    poison_offered = has_feature(session.offered, BalloonFeature.PAGE_POISON)
    session.balloon.write_config(
        config.offset, config.data, poison_offered=poison_offered, driver_runs=session.has_driver
    )


def _config_of(message: Message) -> DeviceConfig:
    assert isinstance(message.payload, DeviceConfig)
    if message.payload.offset + len(message.payload.data) > CONFIG_MAX:
        raise VhostUserError(
            f"{len(message.payload.data)} bytes of configuration space at {message.payload.offset} exceed {CONFIG_MAX}"
        )
    return message.payload
