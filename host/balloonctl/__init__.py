"""``balloonctl``: the operator's client of the control sockets of any number of daemons."""
