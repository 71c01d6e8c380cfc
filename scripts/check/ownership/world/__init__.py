"""A guest and its device in one process: both halves, the queues between them, and the programs that run them."""
