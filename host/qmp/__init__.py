"""QMP, the protocol of QEMU's monitor: its JSON text, the server's side of a connection, and a client."""
