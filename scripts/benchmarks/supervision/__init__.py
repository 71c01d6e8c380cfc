"""What it costs that virtual machines are served by worker processes, and what a daemon costs as a whole."""
