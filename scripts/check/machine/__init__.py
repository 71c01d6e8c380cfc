"""Plays a virtual machine to a device: its memory, its connection to a back-end, the driver's half of its rings."""
