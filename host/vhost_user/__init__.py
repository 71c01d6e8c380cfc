"""The back-end's state machine: what every vhost-user message does, as values for the shell to perform."""
