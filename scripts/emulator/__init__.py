"""``scripts/qemu``, ``balloon-qemu``: tries every feature of the balloon with a Debian guest of QEMU."""
