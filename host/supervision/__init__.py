"""Worker processes that may die: what is kept of each session outside of them, and the process that keeps it."""
