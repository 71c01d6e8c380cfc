"""Commands to a running machine: stop the device's queues, start them again, reset the device."""

from collections.abc import Awaitable, Callable
from functools import partial

from guest.vhost_user.attachment import Attachment
from protocol.errors import BalloonError

Command = Callable[[], Awaitable[str]]

CurrentAttachment = Callable[[], Attachment | None]


def device_commands(current: CurrentAttachment) -> dict[str, Command]:
    """Return the commands by name. ``current`` returns the current attachment, None without a back-end.

    They raise :class:`BalloonError` where they cannot be carried out.
    """
    return {"stop": partial(_stop, current), "cont": partial(_continue, current), "reset": partial(_reset, current)}


async def _stop(current: CurrentAttachment) -> str:
    attachment = _attached(current)
    if not attachment.is_started:
        raise BalloonError("the queues are stopped already")
    bases = await attachment.stop()
    return "".join(f"{queue.value} {base}\n" for queue, base in bases.items())


async def _continue(current: CurrentAttachment) -> str:
    attachment = _attached(current)
    if attachment.is_started:
        raise BalloonError("the queues are not stopped")
    await attachment.start()
    return "started\n"


async def _reset(current: CurrentAttachment) -> str:
    await _attached(current).reset()
    return "reset\n"


def _attached(current: CurrentAttachment) -> Attachment:
    attachment = current()
    if attachment is None:
        raise BalloonError("there is no back-end at the moment")
    return attachment
