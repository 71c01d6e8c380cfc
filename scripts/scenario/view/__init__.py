"""The live view of a run on a terminal: what is shown, which key does what, and the pace of virtual time."""
