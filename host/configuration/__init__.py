"""What the operator asks of the daemon: the sockets that it serves, and the device at each of them."""
