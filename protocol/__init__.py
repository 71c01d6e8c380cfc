"""The wire format and the rings: what both sides of a virtio-balloon device must agree on.

Never imports ``guest`` or ``host``. Only ``protocol/process`` uses the operating system; the rest handles bytes,
numbers and typed values.
"""
