"""The back-end's state machine: the effects of every vhost-user message, as values for the shell to perform."""
