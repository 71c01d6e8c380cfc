"""``scripts/lab``, ``balloon-lab``: experiments on free page reporting, compared with published figures."""
