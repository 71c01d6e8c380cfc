"""``scripts/demo``, ``balloon-demo``: two virtual machines that do not fit into the host's memory at once."""
