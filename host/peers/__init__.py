"""What one front-end's process and its user may take of the daemon: descriptors, sessions, workers, helper threads."""
