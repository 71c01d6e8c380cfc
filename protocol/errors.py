"""Every error of the project, drawn once.

::

    BalloonError                 one line that a person can act on; never a traceback for them
    ├── UsageError               what this process was asked means nothing, here or anywhere (an option, a size, the
    │                            content of a file that an option names): exit status 2, all others 1
    ├── PeerError                the other side of the wire broke a rule
    │   ├── VhostUserError       a vhost-user message is wrong: refuse it, the connection may go on
    │   │   └── FramingError     the byte stream itself cannot be trusted any more: close the connection
    │   └── VirtqueueError       a ring is broken: stop that queue, nothing else
    └── SessionEnded             the other side went away; not a fault

A :class:`PeerError` never reaches beyond the virtual machine whose peer caused it.
"""


class BalloonError(Exception):
    """Base of all errors that this project raises on purpose. ``str()`` is one line for a person."""


class UsageError(BalloonError):
    """A person or a program asked this process for something that means nothing, whatever the state of the machine.

    A file that cannot be opened, a socket that nobody listens on or somebody else does, memory that is not there: these
    are failures, for which :class:`BalloonError` itself stands.
    """


class PeerError(BalloonError):
    """The process at the other end broke a rule of the protocol."""


class VhostUserError(PeerError):
    """A vhost-user message that cannot be carried out. The stream is still in step: later messages may be good."""


class FramingError(VhostUserError):
    """A header that cannot be believed. Nothing after it can be, so the connection has to be closed."""


class VirtqueueError(PeerError):
    """A virtqueue whose rings break the specification. The queue has to stop; no other queue is concerned."""


class SessionEnded(BalloonError):
    """The connection closed, cleanly or not. The session is over, nobody is to blame."""
