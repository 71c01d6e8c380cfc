"""Judges the driver that attaches: a device that writes down all that a driver does, and cases that look at it."""
