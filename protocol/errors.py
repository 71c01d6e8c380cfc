"""The errors of the project.

::

    BalloonError                 one line for the user, never a traceback
    ├── UsageError               invalid input in any state of the machine (an option, a size, the content of a file
    │                            that an option names): exit status 2, all others 1
    ├── PeerError                the peer broke a rule of the protocol
    │   ├── VhostUserError       a vhost-user message is wrong: refuse it, the connection may go on
    │   │   └── FramingError     the byte stream is out of step: close the connection
    │   └── VirtqueueError       a ring is broken: stop that queue, nothing else
    └── SessionEnded             the peer closed the connection; not a fault

A :class:`PeerError` affects only the virtual machine whose peer caused it.
"""


class BalloonError(Exception):
    """Base of all errors that this project raises. ``str()`` is one line for the user."""


class UsageError(BalloonError):
    """Invalid input from a user or a program: it would be wrong in any state of the machine.

    A file that cannot be opened, a socket without a listener or with another one, too little memory: these are
    failures, for which :class:`BalloonError` itself is raised.
    """


class PeerError(BalloonError):
    """The peer broke a rule of the protocol."""


class VhostUserError(PeerError):
    """A vhost-user message that is refused. The stream is still in step: later messages may be valid."""


class FramingError(VhostUserError):
    """An invalid header. The start of the next message is unknown, so the connection must be closed."""


class VirtqueueError(PeerError):
    """A virtqueue whose rings break the specification. The queue must stop; other queues are not affected."""


class SessionEnded(BalloonError):
    """The connection was closed, cleanly or not, and the session is over. This is not a fault."""
