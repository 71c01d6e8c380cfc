"""Memory layout of x86 machines: the zones of x86-64, and the hole in RAM below 4 GiB."""
