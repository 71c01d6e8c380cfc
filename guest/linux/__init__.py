"""The real guest: an unmodified Linux kernel under User Mode Linux. ``python -m guest.linux`` runs one."""
