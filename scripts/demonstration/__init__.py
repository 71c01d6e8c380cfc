"""The demonstration: two virtual machines that do not fit into the host at once, with reporting and without."""
