"""The front-end: the messages of a session, its sockets, and the device attached to a machine."""
