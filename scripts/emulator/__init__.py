"""A QEMU guest with an unmodified Debian kernel, driven through what the balloon can do."""
