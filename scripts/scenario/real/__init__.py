"""A scenario played by processes: the daemon, emulated and real guests, a memory cgroup as the host's budget."""
