"""Fuzz target: the vhost-user message reader, with any stream in pieces of any length.

Input: a byte of choices (bits 0 and 1 the channel, bit 2 with file descriptors), two lengths of pieces, a number of
file descriptors, then the stream.
"""

from itertools import cycle
from typing import Final

from protocol.errors import FramingError
from protocol.message_limits import PAYLOAD_MAX
from protocol.vhost_user import HEADER_SIZE, form_of
from protocol.vhost_user_codec import BadMessage, Channel, Message, MessageReader, build_message
from scripts.check.fuzzing.byte_source import ByteSource, must

_CHANNELS: Final = tuple(Channel)
_WITH_DESCRIPTORS: Final = 4


def codec(data: bytes) -> None:
    """A stream comes out as messages or ends in a FramingError; how it was cut makes no difference, no file descriptor
    is lost or doubled, and a request that was accepted is built and read again as itself."""
    source = ByteSource(data)
    choices, first, second, fds_each = source.number(), source.number(), source.number(), source.number()
    channel, stream = _CHANNELS[choices & 3], source.rest()
    if choices & _WITH_DESCRIPTORS:
        _read_with_descriptors(channel, stream, fds_each)
        return
    reader = MessageReader(channel)
    messages: list[Message | BadMessage] = []
    lengths = cycle((first or PAYLOAD_MAX, second or PAYLOAD_MAX))
    at, error = 0, None
    while at < len(stream) and error is None:
        piece = stream[at : at + next(lengths)]
        at += len(piece)
        reader.feed(piece)
        error = _drain(reader, messages)
    whole = MessageReader(channel)
    whole.feed(stream)
    others: list[Message | BadMessage] = []
    must(_drain(whole, others) == error, "the error depends on how the stream was cut")
    must([_shown(one) for one in messages] == [_shown(one) for one in others], "messages depend on how they were cut")
    for message in messages:
        _check_again(channel, message)


def _drain(reader: MessageReader, messages: list[Message | BadMessage]) -> str | None:
    # Returns the text of the error that ended the stream.
    try:
        while (message := reader.next_message()) is not None:
            messages.append(message)
    except FramingError as error:
        return str(error)
    must(1 <= reader.bytes_desired() <= PAYLOAD_MAX, "bytes_desired is not a length of a piece")
    return None


def _read_with_descriptors(channel: Channel, stream: bytes, fds_each: int) -> None:
    # As a session reads: never past the current message. Some pieces come with descriptors; the numbers are not opened.
    reader = MessageReader(channel)
    messages: list[Message | BadMessage] = []
    at, fed = 0, 0
    while at < len(stream):
        piece = stream[at : at + reader.bytes_desired()]
        count = fds_each & 0x3F if not reader.in_message or fds_each & 0x40 else 0
        reader.feed(piece, range(fed, fed + count))
        fed += count
        at += len(piece)
        if _drain(reader, messages) is not None:
            break
    received = [fd for message in messages for fd in message.fds]
    must(received + list(reader.take_fds()) == list(range(fed)), "file descriptors are lost, doubled or out of order")


def _shown(message: Message | BadMessage) -> object:
    # Errors are equal by what they say.
    return message if isinstance(message, Message) else (message.request, message.need_reply, str(message.error))


def _check_again(channel: Channel, message: Message | BadMessage) -> None:
    if isinstance(message, BadMessage) or channel.carries_replies or form_of(message.request).fds != range(1):
        return
    data = build_message(message.request, message.payload, need_reply=message.need_reply)
    must(len(data) <= HEADER_SIZE + PAYLOAD_MAX, "a message that was read is too long to be sent")
    reader = MessageReader(channel)
    reader.feed(data)
    must(reader.next_message() == message, f"{message} is another message after it was built and read again")
