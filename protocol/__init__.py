"""The wire and the rings: what both sides of a virtio-balloon device must agree on.

Imports neither ``guest`` nor ``host`` and touches no operating system: bytes, numbers and typed values only.
"""
