"""File descriptors that a front-end passed: what they are, and how they are closed without waiting."""
