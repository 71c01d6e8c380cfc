"""``balloon-policy``: a policy applied to living virtual machines, as a client of the control sockets of daemons."""
